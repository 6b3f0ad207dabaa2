//! The records beside the tensors: decoded after they are checked, refused where torch would.

use std::path::Path;

use fastckpt_core::Error;
use fastckpt_core::job::Unobserved;
use fastckpt_core::read::ReadOptions;

use crate::archives::{archive_of, archive_with, payloads, pickle_of};
use crate::in_memory;

#[test]
fn data_pkl_is_decoded_after_its_checksum() {
    let storages = payloads(&[40, 70]);
    let good = archive_of(&storages, 64);
    let archive = in_memory(good.clone()).unwrap();
    let graph = archive.decode(true).unwrap();
    assert_eq!(graph.storages().len(), 2);
    assert_eq!(
        archive.read_record("data.pkl", true).unwrap(),
        pickle_of(&storages)
    );
    for name in ["data.pkl", "version", "byteorder", ".format_version"] {
        let (_, entry) = archive.index().find(name).unwrap();
        let mut bytes = good.clone();
        bytes[usize::try_from(entry.payload_offset).unwrap()] ^= 1;
        let outcome = in_memory(bytes).unwrap().decode(true);
        let Err(Error::Checksum(mismatch)) = outcome else {
            panic!("{name}: {outcome:?}")
        };
        assert_eq!(mismatch.record, name);
    }
}

#[test]
fn an_unknown_byte_order_is_refused() {
    let mut bytes = archive_of(&payloads(&[40]), 64);
    let archive = in_memory(bytes.clone()).unwrap();
    let (_, entry) = archive.index().find("byteorder").unwrap();
    bytes[usize::try_from(entry.payload_offset).unwrap()] = b'L';
    let message = in_memory(bytes)
        .unwrap()
        .decode(false)
        .unwrap_err()
        .to_string();
    assert_eq!(
        message,
        "model.pt: record byteorder has \"Little\", expected \"little\" or \"big\""
    );
}

#[test]
fn what_torch_refuses_an_archive_for_is_refused() {
    let good = archive_of(&payloads(&[40]), 64);
    for (name, byte, problem) in [
        (
            "version",
            b'0',
            "has \"0\\n\", expected a version from 1 to 10",
        ),
        (
            "version",
            b'-',
            "has \"-\\n\", expected a version from 1 to 10",
        ),
        (".storage_alignment", b'+', "has \"+4\", expected a number"),
        (
            ".data/serialization_id",
            0xff,
            "has \"\u{fffd}0000000000000000000040490072216\", expected text",
        ),
    ] {
        let archive = in_memory(good.clone()).unwrap();
        let (_, entry) = archive.index().find(name).unwrap();
        let mut bytes = good.clone();
        bytes[usize::try_from(entry.payload_offset).unwrap()] = byte;
        // Without their checksums, or these would be what is wrong.
        let message = in_memory(bytes)
            .unwrap()
            .decode(false)
            .unwrap_err()
            .to_string();
        assert_eq!(message, format!("model.pt: record {name} {problem}"));
    }
}

#[test]
fn a_missing_record_is_named() {
    let archive = in_memory(archive_of(&payloads(&[40]), 64)).unwrap();
    let outcome = archive.read(&["7".to_owned()], &ReadOptions::default(), &mut Unobserved);
    let message = outcome.unwrap_err().to_string();
    assert_eq!(
        message,
        "model.pt: record data/7 is missing from the archive"
    );
}

#[test]
fn a_pickle_that_is_none_is_refused() {
    let storages = payloads(&[40]);
    let archive = in_memory(archive_with(b"\x80\x02", &storages, 64)).unwrap();
    let Err(Error::Pickle { path, .. }) = archive.decode(true) else {
        panic!("decoded")
    };
    assert_eq!(path, Path::new("model.pt"));
}
