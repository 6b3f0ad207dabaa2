//! Files of torch before 1.6: each refusal with its message, and where the storages lie.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic
)]

use fastckpt_format::legacy::{Contents, Header, LegacyError};
use fastckpt_format::pickle::{Node, length};
use proptest::prelude::*;

const MAGIC: &[u8] = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.";
const PROTOCOL: &[u8] = b"\x80\x02M\xe9\x03.";
const SYSTEM_INFO: &[u8] = b"\x80\x02}q\0X\x0d\0\0\0little_endianq\x01\x88s.";
/// A storage of three floats, without a tensor.
const THREE: &[u8] =
    b"\x80\x02(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0aX\x03\0\0\0cpuK\x03NtQ.";
const KEY_A: &[u8] = b"\x80\x02]X\x01\0\0\0aa.";

fn file(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

fn whole() -> Vec<u8> {
    file(&[MAGIC, PROTOCOL, SYSTEM_INFO, THREE, KEY_A])
}

fn refusal(parts: &[&[u8]]) -> String {
    Header::parse(&file(parts)).unwrap_err().to_string()
}

fn contents(start: u64, file_nbytes: u64) -> Result<Contents, LegacyError> {
    let header = Header::parse(&whole()).unwrap().unwrap();
    header.contents(start, file_nbytes)
}

#[test]
fn the_length_of_a_pickle_is_that_of_its_opcodes() {
    assert_eq!(length(b"\x80\x02}.and more").unwrap(), Some(4));
    for nbytes in 0..THREE.len() {
        assert_eq!(length(&THREE[..nbytes]).unwrap(), None, "{nbytes}");
    }
    assert_eq!(length(THREE).unwrap(), Some(THREE.len()));
    // The length that a text claims is not there, and is not asked for.
    assert_eq!(length(b"\x80\x02X\xff\xff\xff\xff").unwrap(), None);
    let refused = length(b"\x80\x02L12L\n.").unwrap_err();
    assert!(
        refused
            .to_string()
            .starts_with("data.pkl byte 2: unsupported opcode 0x4c (LONG)")
    );
}

#[test]
fn storages_lie_behind_their_counts() {
    let nbytes = whole().len() as u64;
    let found = contents(100, 100 + nbytes + 8 + 12).unwrap();
    let [entry] = found.index.entries() else {
        panic!("{:?}", found.index);
    };
    assert_eq!(entry.name, "data/a");
    assert_eq!(entry.payload_offset, 100 + nbytes + 8);
    assert_eq!(entry.nbytes, 12);
    assert_eq!(found.index.checksum(0), None);
    assert_eq!(found.end, 100 + nbytes + 20);
    let [count] = found.counts.as_slice() else {
        panic!("{:?}", found.counts);
    };
    assert_eq!((count.offset, count.expected), (100 + nbytes, 3));
    count.check(3_i64.to_le_bytes()).unwrap();
    assert_eq!(
        count.check((-3_i64).to_le_bytes()).unwrap_err().to_string(),
        format!(
            "damaged: storage \"a\" at offset {}: expected a count of 3 elements, found -3",
            100 + nbytes
        )
    );
}

#[test]
fn a_file_that_is_too_short_for_its_storages_is_refused() {
    let nbytes = whole().len() as u64;
    assert_eq!(
        contents(0, nbytes + 19).unwrap_err().to_string(),
        format!(
            "the file is truncated: storage \"a\" should end at byte {}, and the file has {}",
            nbytes + 20,
            nbytes + 19
        )
    );
}

#[test]
fn the_object_is_decoded() {
    let header = Header::parse(&whole()).unwrap().unwrap();
    assert_eq!(header.graph.pickle(), THREE);
    assert!(matches!(
        header.graph.node(header.graph.root()),
        Node::Storage(_)
    ));
    assert_eq!(
        header.graph.outside(),
        Some("storage \"a\" without a tensor")
    );
}

#[test]
fn every_refusal_says_where_and_what() {
    let none: &[u8] = b"\x80\x02N.";
    let empty: &[u8] = b"\x80\x02].";
    let call: &[u8] = b"\x80\x02cos\nsystem\n(X\x02\0\0\0lstR.";
    let item: &[u8] = b"\x80\x02)K\0K\x01s.";
    let cases: &[(&[&[u8]], &str)] = &[
        (
            &[none, PROTOCOL, SYSTEM_INFO, none, empty],
            "the file does not begin with the magic number of torch.save",
        ),
        (
            &[MAGIC, none, SYSTEM_INFO, none, empty],
            "the protocol version is not 1001",
        ),
        (
            &[MAGIC, PROTOCOL, call, none, empty],
            "the pickle of the system info has a global, which none has",
        ),
        (
            &[MAGIC, PROTOCOL, SYSTEM_INFO, item, empty],
            "the pickle of the object, byte 7: SETITEM on a tuple; only dict, OrderedDict and Counter have items",
        ),
        (
            &[MAGIC, PROTOCOL, SYSTEM_INFO, none, b"\x80\x02S'a'\n."],
            "the pickle of the storage keys, byte 2: unsupported opcode 0x53 (STRING); \
             torch.load(weights_only=True) takes pickle protocol 2 only",
        ),
        (
            &[MAGIC, PROTOCOL, SYSTEM_INFO, THREE, none],
            "damaged: the storage keys are not a list of str",
        ),
        (
            &[MAGIC, PROTOCOL, SYSTEM_INFO, THREE, b"\x80\x02]K\x01a."],
            "damaged: the storage keys are not a list of str",
        ),
        (
            &[MAGIC, PROTOCOL, SYSTEM_INFO, THREE, empty],
            "damaged: the list of storage keys lacks \"a\"",
        ),
        (
            &[MAGIC, PROTOCOL, SYSTEM_INFO, none, KEY_A],
            "damaged: the list of storage keys has what the object does not refer to: \"a\"",
        ),
        (
            &[
                MAGIC,
                PROTOCOL,
                SYSTEM_INFO,
                THREE,
                b"\x80\x02]X\x01\0\0\0aq\x01ah\x01a.",
            ],
            "damaged: the list of storage keys has twice \"a\"",
        ),
    ];
    for (parts, message) in cases {
        assert_eq!(refusal(parts), *message);
    }
}

#[test]
fn a_file_that_ends_early_says_inside_what() {
    let whole = whole();
    for nbytes in 0..whole.len() {
        assert!(Header::parse(&whole[..nbytes]).unwrap().is_none());
    }
    assert_eq!(
        Header::truncated(&whole[..whole.len() - 1]).to_string(),
        format!(
            "the file ends after {} bytes, inside the pickle of the storage keys: it is truncated",
            whole.len() - 1
        )
    );
    assert_eq!(
        Header::truncated(b"").to_string(),
        "the file ends after 0 bytes, inside the pickle of the magic number: it is truncated"
    );
}

#[test]
fn long_keys_are_cut_in_messages() {
    let key = "k".repeat(1000);
    let nbytes = u32::try_from(key.len()).unwrap().to_le_bytes();
    let keys = [
        b"\x80\x02]X",
        nbytes.as_slice(),
        key.as_bytes(),
        b"a.".as_slice(),
    ]
    .concat();
    let message = refusal(&[MAGIC, PROTOCOL, SYSTEM_INFO, b"\x80\x02N.", &keys]);
    assert!(message.len() < 200, "{message}");
}

proptest! {
    #[test]
    fn no_change_of_bytes_panics_or_reaches_outside(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        extra in 0_u64..64,
    ) {
        let mut bytes = whole();
        for (index, value) in changes {
            let position = index.index(bytes.len());
            bytes[position] = value;
        }
        let file_nbytes = bytes.len() as u64 + extra;
        if let Ok(Some(header)) = Header::parse(&bytes)
            && let Ok(contents) = header.contents(0, file_nbytes)
        {
            for entry in contents.index.entries() {
                prop_assert!(entry.payload_offset + entry.nbytes <= contents.end);
            }
            prop_assert!(contents.end <= file_nbytes);
        }
    }
}
