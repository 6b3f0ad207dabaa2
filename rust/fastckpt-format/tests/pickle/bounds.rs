//! What a short pickle cannot make large.

use super::*;

fn decoded_with(parts: &[&[u8]], max_depth: usize) -> Result<Graph, PickleError> {
    let limits = Limits {
        max_depth,
        ..Limits::default()
    };
    decode(pickle(parts), limits)
}

#[test]
fn nesting_is_bounded() {
    let lists = [vec![b']'; 11], vec![b'a'; 10]].concat();
    assert!(decoded_with(&[&lists], 10).is_ok());
    let error = decoded_with(&[&lists], 9).unwrap_err();
    assert_eq!(
        error.to_string(),
        "data.pkl: objects nest deeper than 9 containers"
    );
    let tuples = [vec![b'N'], vec![0x85; 10]].concat();
    assert!(decoded_with(&[&tuples], 10).is_ok());
    let error = decoded_with(&[&tuples], 9).unwrap_err();
    assert_eq!(
        error.to_string(),
        "data.pkl byte 12: TUPLE1 nests deeper than 9"
    );
    let error = decoded_with(&[&[b'('; 10]], 9).unwrap_err();
    assert_eq!(
        error.to_string(),
        "data.pkl byte 11: MARK nests deeper than 9"
    );
}

#[test]
fn a_long_pickle_is_refused_unread() {
    let limits = Limits {
        max_nbytes: 3,
        ..Limits::default()
    };
    let error = decode(pickle(&[b"N"]), limits).unwrap_err();
    assert_eq!(
        error.to_string(),
        "data.pkl has 4 bytes, more than the limit of 3"
    );
}

/// A text of 10,000 bytes, made into bytes 10,000 times, would be 100 MB.
#[test]
fn a_reused_text_does_not_expand() {
    let text = unicode(&"a".repeat(10_000));
    let encode = [
        b"c_codecs\nencode\n".as_slice(),
        &text,
        &unicode("latin1"),
        b"\x86q\x00R",
    ];
    let again = b"c_codecs\nencode\nh\x00R".repeat(10_000);
    let error = refusal(&[b"(", &encode.concat(), &again, b"t"]);
    assert!(matches!(error, PickleError::Expansion { .. }), "{error}");
}

/// The key holds 2**60 objects, and Python would hash each.
#[test]
fn a_key_that_cannot_be_hashed_in_time_is_refused() {
    let doubled = b"q\x00h\x00\x86".repeat(60);
    let error = refusal(&[b"}N", &doubled, b"Ns"]);
    assert_eq!(
        error.to_string(),
        "data.pkl byte 305: reused objects expand to more than 314368 elements"
    );
    assert!(decode(pickle(&[b"N", &doubled]), Limits::default()).is_ok());
}

#[test]
fn names_stay_short_and_printable() {
    let key = unicode(&"k".repeat(100_000));
    let value = tensor(1, 0, &[], &[]);
    let long = graph(&[b"}", &key, &value, b"s"]);
    let name = &long.tensor_names()[0].1;
    assert_eq!(name.chars().count(), 513);
    assert!(name.starts_with("…k"), "{name}");
    let escape = graph(&[b"}", &unicode("a\x1b[2J\n"), &value, b"s"]);
    assert_eq!(escape.tensor_names()[0].1, "a\\u{1b}[2J\\n");
}

/// Keys with the hash of 7: Python would compare each with all before it.
fn keys_of_one_hash(count: u128) -> Vec<u8> {
    let number = |n: u128| 7 + n * ((1 << 61) - 1);
    let long = |n| [b"\x8a\x10".as_slice(), &number(n).to_le_bytes()].concat();
    (0..count).flat_map(long).collect()
}

#[test]
fn keys_that_collide_are_refused_by_name() {
    let set = |count| {
        let keys = keys_of_one_hash(count);
        [b"c__builtin__\nset\n](", keys.as_slice(), b"e\x85R"].concat()
    };
    let name = unicode("seen");
    assert_eq!(
        refusal(&[b"}", &name, &set(1000), b"s"]).to_string(),
        "data.pkl: a set at seen has 1000 keys whose hashes collide; looking them up takes more \
         than 144384 steps, and those of no checkpoint do"
    );
    // A few do no harm.
    graph(&[b"}", &name, &set(200), b"s"]);
}
