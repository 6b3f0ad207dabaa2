//! A copy has the bytes that were verified, or there is none.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "support/archives.rs"]
mod archives;
mod support;

use std::num::NonZeroUsize;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use archives::{archive_of, payloads};
use fastckpt_core::Error;
use fastckpt_core::commit::{Commit, Copied, CopyOptions};
use fastckpt_core::format::index::Checksums;
use fastckpt_core::job::{Observer, Stop, Unobserved};
use support::{Scratch, Script, ScriptedFiles};

const MIB: usize = 1 << 20;

fn copy(
    from: &Path,
    to: &Path,
    options: &CopyOptions,
    script: &Arc<Script>,
) -> Result<Copied, Error> {
    let mut commit = Commit::new(Arc::new(ScriptedFiles(Arc::clone(script))), true);
    let copied = commit.copy_file(to, from, options, &mut Unobserved)?;
    if copied.report.damages.is_empty() {
        commit.publish(&[to], &mut Unobserved)?;
    }
    Ok(copied)
}

fn options(threads: usize, direct: Option<bool>) -> CopyOptions {
    CopyOptions {
        threads: NonZeroUsize::new(threads),
        direct,
        ..CopyOptions::default()
    }
}

#[test]
fn copies_have_the_bytes_whatever_the_size_and_the_way() {
    for sizes in [vec![], vec![1, 0, 4096], vec![5 * MIB, 3, 2 * MIB - 64]] {
        let bytes = archive_of(&payloads(&sizes), 64);
        for (threads, direct, short_writes) in [
            (1, None, None),
            (4, None, None),
            (4, Some(false), None),
            (2, Some(false), Some(70_001)),
        ] {
            let scratch = Scratch::new();
            let (from, to) = (scratch.path("model.pt"), scratch.path("copy.pt"));
            std::fs::write(&from, &bytes).unwrap();
            let script = Arc::new(Script {
                short_writes,
                ..Script::default()
            });
            let copied = copy(&from, &to, &options(threads, direct), &script).unwrap();
            assert!(std::fs::read(&to).unwrap() == bytes, "{sizes:?}");
            assert_eq!(copied.report.damages, []);
            assert_eq!(copied.report.records, sizes.len() + 6);
            assert_eq!(copied.report.checksums, Checksums::All);
            assert!(copied.report.headers_covered);
            assert_eq!(scratch.names(), ["copy.pt", "model.pt"]);
        }
    }
}

#[test]
fn whatever_bit_is_flipped_nothing_is_there_to_be_published() {
    let good = archive_of(&payloads(&[40, 0, 70, 1]), 64);
    let scratch = Scratch::new();
    let (from, to) = (scratch.path("model.pt"), scratch.path("copy.pt"));
    let script = Arc::new(Script::default());
    // Another bit of another structure each time.
    for byte in (0..good.len()).step_by(13) {
        let mut bytes = good.clone();
        bytes[byte] ^= 1 << (byte % 8);
        std::fs::write(&from, &bytes).unwrap();
        let copied = copy(&from, &to, &options(1, Some(false)), &script).unwrap();
        assert!(!copied.report.damages.is_empty(), "byte {byte}");
        assert_eq!(scratch.names(), ["model.pt"], "byte {byte}");
    }
}

#[test]
fn a_damaged_tensor_is_named() {
    let mut bytes = archive_of(&payloads(&[40, 5 * MIB]), 64);
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    let scratch = Scratch::new();
    let (from, to) = (scratch.path("model.pt"), scratch.path("copy.pt"));
    std::fs::write(&from, &bytes).unwrap();
    let script = Arc::new(Script::default());
    let copied = copy(&from, &to, &options(4, None), &script).unwrap();
    assert_eq!(copied.report.damages.len(), 1);
    assert_eq!(copied.report.damages[0].tensors, ["t1"]);
    assert_eq!(scratch.names(), ["model.pt"]);
    assert_eq!(
        script.count("sync"),
        0,
        "nobody waits for what is thrown away"
    );
}

#[test]
fn any_file_is_copied_where_nothing_is_to_be_compared() {
    for nbytes in [0, 1, 4096, 3 * MIB + 5] {
        let bytes = archives::payload(7, nbytes);
        let scratch = Scratch::new();
        let (from, to) = (scratch.path("notes"), scratch.path("copy"));
        std::fs::write(&from, &bytes).unwrap();
        let plain = CopyOptions {
            verify: false,
            ..CopyOptions::default()
        };
        let copied = copy(&from, &to, &plain, &Arc::new(Script::default())).unwrap();
        assert!(std::fs::read(&to).unwrap() == bytes, "{nbytes}");
        assert_eq!(copied.report.checksums, Checksums::None);
        let checked = copy(&from, &to, &options(1, None), &Arc::new(Script::default())).unwrap();
        assert!(!checked.report.damages.is_empty(), "no archive");
    }
}

#[test]
fn mode_and_time_are_those_of_the_original() {
    let scratch = Scratch::new();
    let (from, to) = (scratch.path("model.pt"), scratch.path("copy.pt"));
    std::fs::write(&from, archive_of(&payloads(&[100]), 64)).unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_000_000);
    for mode in [0o600, 0o640, 0o644, 0o444] {
        let file = std::fs::File::open(&from).unwrap();
        file.set_permissions(std::fs::Permissions::from_mode(mode))
            .unwrap();
        file.set_modified(time).unwrap();
        let script = Arc::new(Script::default());
        assert_eq!(
            copy(&from, &to, &options(1, None), &script).unwrap().unkept,
            None
        );
        let found = std::fs::metadata(&to).unwrap();
        assert_eq!(found.permissions().mode() & 0o7777, mode);
        assert_eq!(found.modified().unwrap(), time);
        std::fs::remove_file(&to).unwrap();
        let mut commit = Commit::new(Arc::new(ScriptedFiles(script)), true);
        let unkept = commit.write_bytes_like(&to, b"{}", &from, &mut Unobserved);
        assert_eq!(unkept.unwrap(), None);
        commit.publish(&[&to], &mut Unobserved).unwrap();
        let found = std::fs::metadata(&to).unwrap();
        assert_eq!(found.permissions().mode() & 0o7777, mode);
        assert_eq!(found.modified().unwrap(), time);
        assert_eq!(std::fs::read(&to).unwrap(), b"{}");
        std::fs::remove_file(&to).unwrap();
    }
}

#[test]
fn a_disk_that_takes_no_mode_gets_a_private_copy_and_says_so() {
    let scratch = Scratch::new();
    let (from, to) = (scratch.path("model.pt"), scratch.path("copy.pt"));
    let bytes = archive_of(&payloads(&[100]), 64);
    std::fs::write(&from, &bytes).unwrap();
    let script = Arc::new(Script {
        fail_named: Some(("set_rights", 1)),
        ..Script::default()
    });
    let copied = copy(&from, &to, &options(1, None), &script).unwrap();
    assert!(copied.unkept.unwrap().contains("Operation not permitted"));
    assert!(std::fs::read(&to).unwrap() == bytes);
    let mode = std::fs::metadata(&to).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
}

#[test]
fn every_operation_that_fails_leaves_nothing_or_the_whole_copy() {
    let bytes = archive_of(&payloads(&[100_000, 0, 17]), 64);
    let scratch = Scratch::new();
    let (from, to) = (scratch.path("model.pt"), scratch.path("copy.pt"));
    std::fs::write(&from, &bytes).unwrap();
    let counted = Arc::new(Script::default());
    copy(&from, &to, &options(1, None), &counted).unwrap();
    let operations = counted.log.lock().unwrap().clone();
    assert!(operations.len() > 10, "{operations:?}");
    for (number, name) in operations.iter().enumerate() {
        std::fs::remove_file(&to).ok();
        let script = Arc::new(Script {
            fail: Some((number, 5)),
            ..Script::default()
        });
        let result = copy(&from, &to, &options(1, None), &script);
        let context = format!("{name} (operation {number}): {result:?}");
        if result.is_ok() || matches!(result, Err(Error::CommitUnknown { .. })) {
            assert!(std::fs::read(&to).unwrap() == bytes, "{context}");
            assert_eq!(scratch.names(), ["copy.pt", "model.pt"], "{context}");
        } else {
            assert_eq!(scratch.names(), ["model.pt"], "{context}");
        }
        assert!(script.count("sync") <= 1, "{context}");
    }
}

#[test]
fn an_interrupted_copy_leaves_nothing() {
    struct Impatient;
    impl Observer for Impatient {
        fn poll(&mut self, _done: u64, _total: u64) -> Result<(), Stop> {
            Err(Stop)
        }
    }
    let scratch = Scratch::new();
    let (from, to) = (scratch.path("model.pt"), scratch.path("copy.pt"));
    std::fs::write(&from, archive_of(&payloads(&[9 * MIB]), 64)).unwrap();
    let files = Arc::new(ScriptedFiles(Arc::new(Script::default())));
    let mut commit = Commit::new(files, true);
    let result = commit.copy_file(&to, &from, &CopyOptions::default(), &mut Impatient);
    assert!(matches!(result, Err(Error::Interrupted)), "{result:?}");
    assert_eq!(scratch.names(), ["model.pt"]);
}
