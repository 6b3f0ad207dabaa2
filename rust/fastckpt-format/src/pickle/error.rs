//! Why a pickle is refused. Each message begins with the offset of the opcode that is to blame.

use super::opcode;

/// `data.pkl` is not what `torch.save` writes, or asks for more than its bytes can justify.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PickleError {
    /// The record is longer than the limit.
    #[error("data.pkl has {nbytes} bytes, more than the limit of {limit}")]
    TooLarge {
        /// Length of the record.
        nbytes: usize,
        /// The limit that was set, at most 4 GiB.
        limit: usize,
    },
    /// The bytes end inside an opcode or before `STOP`.
    #[error(
        "data.pkl byte {offset}: the pickle ends inside {}, {missing} bytes are missing",
        .opcode.map_or("the stream, before STOP", opcode::name)
    )]
    Truncated {
        /// Where the incomplete opcode begins.
        offset: usize,
        /// The incomplete opcode, `None` where one was expected.
        opcode: Option<u8>,
        /// How many bytes are missing at least.
        missing: usize,
    },
    /// An opcode that torch's restricted unpickler does not have either.
    #[error(
        "data.pkl byte {offset}: unsupported opcode {opcode:#04x} ({}); \
         torch.load(weights_only=True) takes pickle protocol 2 only",
        opcode::name(*opcode)
    )]
    UnsupportedOpcode {
        /// Where it stands.
        offset: usize,
        /// The opcode.
        opcode: u8,
    },
    /// A `PROTO` opcode that is not the first, or of a protocol that does not exist.
    #[error("data.pkl byte {offset}: PROTO {version} is not allowed here")]
    Protocol {
        /// Where it stands.
        offset: usize,
        /// The protocol that it states.
        version: u8,
    },
    /// An opcode takes more objects than lie on the stack above the last mark.
    #[error("data.pkl byte {offset}: {} finds too few objects on the stack", opcode::name(*opcode))]
    StackUnderflow {
        /// Where the opcode stands.
        offset: usize,
        /// The opcode.
        opcode: u8,
    },
    /// An opcode that closes a mark, and none is open.
    #[error("data.pkl byte {offset}: {} without a MARK", opcode::name(*opcode))]
    NoMark {
        /// Where the opcode stands.
        offset: usize,
        /// The opcode.
        opcode: u8,
    },
    /// `STOP` with more than the one object on the stack.
    #[error("data.pkl byte {offset}: STOP leaves {objects} objects and {marks} marks on the stack")]
    Leftover {
        /// Where `STOP` stands.
        offset: usize,
        /// Objects besides the root.
        objects: usize,
        /// Open marks.
        marks: usize,
    },
    /// Bytes after `STOP`, which another parser might read.
    #[error("data.pkl byte {offset}: {nbytes} bytes follow the STOP opcode")]
    Trailing {
        /// Where the first of them stands.
        offset: usize,
        /// How many there are.
        nbytes: usize,
    },
    /// A memo index that no pickler could have reached at this offset.
    #[error("data.pkl byte {offset}: memo index {index} is larger than its offset")]
    MemoIndex {
        /// Where the opcode stands.
        offset: usize,
        /// The index.
        index: u32,
    },
    /// A memo entry that was never stored.
    #[error("data.pkl byte {offset}: memo entry {index} was never stored")]
    MemoMissing {
        /// Where the opcode stands.
        offset: usize,
        /// The index.
        index: u32,
    },
    /// Text that is not UTF-8 (with lone surrogates, in a Unicode opcode).
    #[error("data.pkl byte {offset}: the text of {} is not UTF-8", opcode::name(*opcode))]
    Text {
        /// Where the opcode stands.
        offset: usize,
        /// The opcode.
        opcode: u8,
    },
    /// `SETITEM` or `SETITEMS` on something that is no dict (the shape of CVE-2026-24747).
    #[error(
        "data.pkl byte {offset}: {} on {found}; only dict, OrderedDict and Counter have items",
        opcode::name(*opcode)
    )]
    SetItemTarget {
        /// Where the opcode stands.
        offset: usize,
        /// The opcode.
        opcode: u8,
        /// What the target is.
        found: &'static str,
    },
    /// `SETITEMS` with a key that has no value.
    #[error("data.pkl byte {offset}: SETITEMS with {count} objects, which are no pairs")]
    OddItems {
        /// Where the opcode stands.
        offset: usize,
        /// How many objects there are.
        count: usize,
    },
    /// A dict key or set element that Python cannot hash.
    #[error("data.pkl byte {offset}: {found} cannot be a dict key or a set element")]
    Unhashable {
        /// Where the opcode stands.
        offset: usize,
        /// What the key is.
        found: &'static str,
    },
    /// `APPEND` or `APPENDS` on something that is no list.
    #[error("data.pkl byte {offset}: {} on {found}, only a list can be appended to", opcode::name(*opcode))]
    AppendTarget {
        /// Where the opcode stands.
        offset: usize,
        /// The opcode.
        opcode: u8,
        /// What the target is.
        found: &'static str,
    },
    /// `BUILD` on something that has no state, such as a list or a tensor.
    #[error("data.pkl byte {offset}: BUILD on {found}, which has no state")]
    BuildTarget {
        /// Where the opcode stands.
        offset: usize,
        /// What the target is.
        found: &'static str,
    },
    /// `REDUCE` or `NEWOBJ` on something that is no global.
    #[error("data.pkl byte {offset}: {} calls {found}, not a global", opcode::name(*opcode))]
    Callable {
        /// Where the opcode stands.
        offset: usize,
        /// The opcode.
        opcode: u8,
        /// What is called.
        found: &'static str,
    },
    /// `REDUCE` or `NEWOBJ` of what is called in one way only, in another.
    #[error("data.pkl byte {offset}: a call of {path} with arguments that no checkpoint has")]
    Call {
        /// Where the opcode stands.
        offset: usize,
        /// What is called.
        path: String,
    },
    /// `REDUCE` or `NEWOBJ` with arguments that are no tuple.
    #[error("data.pkl byte {offset}: the arguments of {} are {found}, not a tuple", opcode::name(*opcode))]
    Arguments {
        /// Where the opcode stands.
        offset: usize,
        /// The opcode.
        opcode: u8,
        /// What the arguments are.
        found: &'static str,
    },
    /// A persistent id that is not `('storage', storage class, key, location, numel)`.
    #[error("data.pkl byte {offset}: a persistent id whose {problem}")]
    PersistentId {
        /// Where the opcode stands.
        offset: usize,
        /// Which part is wrong, and how.
        problem: &'static str,
    },
    /// A tensor that does not fit its storage.
    #[error("data.pkl byte {offset}: a tensor {problem}")]
    Tensor {
        /// Where the call that makes it stands.
        offset: usize,
        /// What is wrong.
        problem: TensorProblem,
    },
    /// An array of numpy that is not as large as its bytes.
    #[error("data.pkl byte {offset}: a numpy array {problem}")]
    Array {
        /// Where the opcode stands that gives it its bytes.
        offset: usize,
        /// What is wrong.
        problem: ArrayProblem,
    },
    /// Marks or tuples nest too deep.
    #[error("data.pkl byte {offset}: {} nests deeper than {limit}", opcode::name(*opcode))]
    Depth {
        /// Where the opcode stands.
        offset: usize,
        /// The opcode.
        opcode: u8,
        /// The limit.
        limit: usize,
    },
    /// An object lies under too many levels of containers.
    #[error("data.pkl: objects nest deeper than {limit} containers")]
    Nesting {
        /// The limit.
        limit: usize,
    },
    /// Who wanted it decoded did not want it to the end.
    #[error("the decoding of data.pkl was stopped")]
    Stopped,
    /// The keys of a dict or set have hashes that were chosen to collide.
    #[error(
        "data.pkl: {what}{place} has {keys} keys whose hashes collide; looking them up takes more \
         than {limit} steps, and those of no checkpoint do"
    )]
    Collisions {
        /// What it is.
        what: &'static str,
        /// ` at ` and the keys that lead to it, where they do.
        place: String,
        /// How many keys it has.
        keys: usize,
        /// The limit, which grows with their number.
        limit: u64,
    },
    /// The same object is copied or hashed so often that the pickle must have been made for that.
    #[error("data.pkl byte {offset}: reused objects expand to more than {limit} elements")]
    Expansion {
        /// Where the opcode stands.
        offset: usize,
        /// The limit, which grows with the length of the pickle.
        limit: u64,
    },
}

/// What is wrong with a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TensorProblem {
    /// An offset, size or stride below zero.
    #[error("with {what} {value}, which is negative")]
    Negative {
        /// `offset`, `size` or `stride`.
        what: &'static str,
        /// The number.
        value: i64,
    },
    /// An offset, size or stride beyond 64 bits.
    #[error("with {what} beyond 64 bits")]
    Huge {
        /// `offset`, `size` or `stride`.
        what: &'static str,
    },
    /// Sizes and strides of different length.
    #[error("with {sizes} sizes and {strides} strides")]
    Dimensions {
        /// How many sizes.
        sizes: usize,
        /// How many strides.
        strides: usize,
    },
    /// The number of elements, or the position of the last one, beyond 64 bits.
    #[error("of more elements than 63 bits can count")]
    Overflow,
    /// The last element lies behind the end of the storage.
    #[error("that needs {needed} bytes of a storage that has {found}")]
    Extent {
        /// Bytes from the start of the storage to the end of the last element.
        needed: u64,
        /// Bytes of the storage.
        found: u64,
    },
}

/// What is wrong with an array of numpy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArrayProblem {
    /// A length below zero.
    #[error("with a dimension of length {length}")]
    Negative {
        /// The length.
        length: i64,
    },
    /// More elements than 63 bits can count.
    #[error("of more bytes than 63 bits can count")]
    Overflow,
    /// Shape and dtype do not go with the bytes.
    #[error("whose shape and dtype need {needed} bytes, and {found} are there")]
    Length {
        /// What shape and dtype need.
        needed: u64,
        /// What is there.
        found: usize,
    },
}
