//! Names of Python objects in a pickle. None of them is ever looked up: a few have a meaning for
//! the decoder, all others are only names.

use super::dtype::Dtype;

/// A class or function that the pickle names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Global {
    module: String,
    name: String,
    pub(super) known: Option<Known>,
}

impl Global {
    /// The global of a `GLOBAL` opcode, under the name that it has in Python 3.
    pub(super) fn new(module: &str, name: &str) -> Self {
        let (module, name) = python3_name(module, name);
        Self {
            module: module.to_owned(),
            name: name.to_owned(),
            known: Known::find(module, name),
        }
    }

    /// The module: `torch._utils`.
    #[must_use]
    pub fn module(&self) -> &str {
        &self.module
    }

    /// The name in the module: `_rebuild_qtensor`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Module and name, joined by a dot.
    #[must_use]
    pub fn path(&self) -> String {
        format!("{}.{}", self.module, self.name)
    }
}

/// The globals that the decoder gives a meaning of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    Dtype(Dtype),
    StorageClass(Dtype),
    UntypedStorage,
    RebuildTensorV2,
    RebuildTensorV3,
    RebuildParameter,
    OrderedDict,
    Counter,
    Size,
    Device,
    Encode,
    ByteArray,
    Set,
    Complex,
    Bytes,
    NumpyArray,
    NumpyDtype,
    NumpyReconstruct,
    NumpyScalar,
}

impl Known {
    fn find(module: &str, name: &str) -> Option<Self> {
        match (module, name) {
            ("torch._utils", "_rebuild_tensor_v2") => Some(Self::RebuildTensorV2),
            ("torch._utils", "_rebuild_tensor_v3") => Some(Self::RebuildTensorV3),
            ("torch._utils", "_rebuild_parameter") => Some(Self::RebuildParameter),
            ("collections", "OrderedDict") => Some(Self::OrderedDict),
            ("collections", "Counter") => Some(Self::Counter),
            ("torch", "Size") => Some(Self::Size),
            ("torch", "device") => Some(Self::Device),
            ("torch.storage", "UntypedStorage") => Some(Self::UntypedStorage),
            ("torch", name) => Dtype::from_name(name)
                .map(Self::Dtype)
                .or_else(|| Dtype::from_storage_class(name).map(Self::StorageClass)),
            ("_codecs", "encode") => Some(Self::Encode),
            ("builtins", "bytearray") => Some(Self::ByteArray),
            ("builtins", "set") => Some(Self::Set),
            ("builtins", "complex") => Some(Self::Complex),
            ("builtins", "bytes") => Some(Self::Bytes),
            ("numpy", "ndarray") => Some(Self::NumpyArray),
            ("numpy", "dtype") => Some(Self::NumpyDtype),
            // The module's names in numpy 1 and 2.
            ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct") => {
                Some(Self::NumpyReconstruct)
            }
            ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => {
                Some(Self::NumpyScalar)
            }
            _ => None,
        }
    }

    /// Whether torch's unpickler would refuse the global, which the decoder understands.
    pub(super) fn is_made_here(self) -> bool {
        matches!(
            self,
            Self::Bytes | Self::NumpyDtype | Self::NumpyReconstruct | Self::NumpyScalar
        )
    }

    /// Whether the fast path stays open after this global: not for what only torch can rebuild.
    pub(super) fn is_inside(self) -> bool {
        match self {
            Self::Dtype(dtype) | Self::StorageClass(dtype) => !dtype.is_quantized(),
            Self::Counter => false,
            _ => true,
        }
    }
}

/// Undoes what protocol 2 does to names (`fix_imports`), as torch's restricted unpickler does.
fn python3_name<'a>(module: &'a str, name: &'a str) -> (&'a str, &'a str) {
    match (module, name) {
        ("__builtin__", "xrange") => ("builtins", "range"),
        ("__builtin__", "reduce") => ("functools", "reduce"),
        ("__builtin__", "intern") => ("sys", "intern"),
        ("__builtin__", "unichr") => ("builtins", "chr"),
        ("__builtin__", "unicode" | "basestring") => ("builtins", "str"),
        ("__builtin__", "long") => ("builtins", "int"),
        ("itertools", "izip") => ("builtins", "zip"),
        ("itertools", "imap") => ("builtins", "map"),
        ("itertools", "ifilter") => ("builtins", "filter"),
        ("itertools", "ifilterfalse") => ("itertools", "filterfalse"),
        ("itertools", "izip_longest") => ("itertools", "zip_longest"),
        ("UserDict", "IterableUserDict") => ("collections", "UserDict"),
        ("exceptions", "StandardError") => ("builtins", "Exception"),
        ("__builtin__", name) => ("builtins", name),
        ("copy_reg", name) => ("copyreg", name),
        ("Queue", name) => ("queue", name),
        ("repr", name) => ("reprlib", name),
        ("_abcoll", name) => ("collections.abc", name),
        ("UserDict" | "UserList" | "UserString", name) => ("collections", name),
        ("whichdb", name) => ("dbm", name),
        ("StringIO" | "cStringIO", name) => ("io", name),
        other => other,
    }
}
