//! What is about to be replaced keeps a second name until everything new is durable.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use fastckpt_core::commit::{Commit, Judged};
use fastckpt_core::job::Unobserved;
use fastckpt_core::{Error, Phase, Result};
use libc::{EACCES, EDQUOT, EIO, EISDIR, EMLINK, ENOSPC, ENOSYS, EOPNOTSUPP, EPERM, EROFS};
use support::{Scratch, Script, ScriptedFiles};

/// The files of a step, in the order in which they are published.
const FILES: [&str; 2] = ["optim.pt", "model.pt"];

const SAVE_ID: u64 = 7;

fn kept(name: &str) -> OsString {
    format!(".fastckpt-00000000000007-{name}.kept").into()
}

fn kept_names() -> Vec<OsString> {
    FILES.iter().map(|name| kept(name)).collect()
}

/// What stands for these names now.
fn judged(scratch: &Scratch, names: &[OsString]) -> Vec<Judged> {
    let look = |name: &OsString| {
        let found = std::fs::symlink_metadata(scratch.path(&name.to_string_lossy()));
        let (device, inode) = found.map_or((0, 0), |found| (found.dev(), found.ino()));
        Judged {
            name: name.clone(),
            device,
            inode,
        }
    };
    names.iter().map(look).collect()
}

fn old(name: &str) -> Vec<u8> {
    format!("the old {name}").into_bytes()
}

fn new(name: &str) -> Vec<u8> {
    format!("the new {name}").into_bytes()
}

/// A directory with a step in it.
fn scratch_with_step() -> Scratch {
    let scratch = Scratch::new();
    for name in FILES {
        std::fs::write(scratch.path(name), old(name)).unwrap();
    }
    scratch
}

fn begin(script: Script, sync: bool) -> (Commit, Arc<Script>) {
    let script = Arc::new(script);
    let commit = Commit::new(Arc::new(ScriptedFiles(Arc::clone(&script))), sync);
    (commit, script)
}

fn write_and_keep(commit: &mut Commit, scratch: &Scratch) -> Result<()> {
    for name in FILES {
        commit.write_bytes(&scratch.path(name), &new(name), &mut Unobserved)?;
    }
    for name in FILES {
        assert!(commit.keep(&scratch.path(name), SAVE_ID)?);
    }
    Ok(())
}

fn publish(commit: &mut Commit, scratch: &Scratch) -> Result<()> {
    FILES
        .iter()
        .try_for_each(|name| commit.publish(&[&scratch.path(name)], &mut Unobserved))
}

fn replace_step(commit: &mut Commit, scratch: &Scratch) -> Result<()> {
    write_and_keep(commit, scratch)?;
    let judged = judged(scratch, &kept_names());
    publish(commit, scratch)?;
    commit.discard(&scratch.path(""), &judged, true, &mut Unobserved)
}

fn is_temporary(name: &str) -> bool {
    Path::new(name).extension() == Some(OsStr::new("tmp"))
}

fn read(path: &Path) -> Option<Vec<u8>> {
    std::fs::read(path).ok()
}

fn inode(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().ino()
}

fn errno_and_phase(result: Result<impl std::fmt::Debug>) -> (Option<i32>, Phase) {
    match result {
        Err(Error::Io { source, phase, .. }) => (source.raw_os_error(), phase),
        other => panic!("{other:?}"),
    }
}

#[test]
fn second_names_are_durable_before_the_first_rename_and_removed_after_all_of_them() {
    for (sync, expected) in [
        (
            true,
            "sync sync link link sync_directory rename sync_directory rename sync_directory \
             sync_directory unlink unlink",
        ),
        (false, "link link rename rename unlink unlink"),
    ] {
        let scratch = scratch_with_step();
        let (mut commit, script) = begin(Script::default(), sync);
        replace_step(&mut commit, &scratch).unwrap();
        let order: Vec<_> = script.log.lock().unwrap().clone();
        let order: Vec<_> = order
            .into_iter()
            .filter(|name| ["sync", "link", "rename", "unlink", "sync_directory"].contains(name))
            .collect();
        assert_eq!(order.join(" "), expected);
        assert_eq!(scratch.names(), ["model.pt", "optim.pt"]);
        for name in FILES {
            assert_eq!(read(&scratch.path(name)), Some(new(name)));
        }
    }
}

/// Whether a step is saved although this operation fails: housekeeping, and what some file systems
/// do not have.
fn is_survived(operation: &str, errno: i32) -> bool {
    match operation {
        "is_local" | "names" | "protects" | "lock_shared" | "unlock" => true,
        "link" => [EPERM, EMLINK, ENOSYS, EOPNOTSUPP].contains(&errno),
        "lock" => [ENOSYS, EOPNOTSUPP].contains(&errno),
        _ => false,
    }
}

fn assert_reported(result: &Result<()>, errno: i32, scratch: &Scratch, context: &str) {
    match result {
        Err(
            Error::Io { source, path, .. }
            | Error::NoSpace { source, path, .. }
            | Error::CommitUnknown { source, path },
        ) => {
            assert_eq!(source.raw_os_error(), Some(errno), "{context}");
            assert!(
                path.starts_with(scratch.path("")),
                "{context}: {}",
                path.display()
            );
        }
        other => panic!("{context}: {other:?}"),
    }
}

#[test]
fn whatever_fails_one_whole_step_is_left_under_names_that_belong_together() {
    let scratch = scratch_with_step();
    let (mut commit, counted) = begin(Script::default(), true);
    replace_step(&mut commit, &scratch).unwrap();
    let operations = counted.log.lock().unwrap().clone();
    assert!(operations.len() > 25, "{operations:?}");
    let first_rename = operations.iter().position(|name| *name == "rename");
    let first_discard = operations
        .iter()
        .rposition(|name| *name == "sync_directory");
    for errno in [
        EPERM, EIO, EACCES, ENOSPC, EROFS, EMLINK, ENOSYS, EOPNOTSUPP, EDQUOT,
    ] {
        for (number, name) in operations.iter().enumerate() {
            let context = format!("{name} (operation {number}) fails with {errno}");
            let scratch = scratch_with_step();
            let fail = Some((number, errno));
            let (mut commit, script) = begin(
                Script {
                    fail,
                    ..Script::default()
                },
                true,
            );
            let result = replace_step(&mut commit, &scratch);
            drop(commit);
            if !is_survived(name, errno) {
                assert_reported(&result, errno, &scratch, &context);
            }
            assert_eq!(result.is_ok(), is_survived(name, errno), "{context}");
            assert!(script.count("sync") <= FILES.len(), "{context}");
            assert!(
                scratch.names().iter().all(|name| !is_temporary(name)),
                "{context}: {:?}",
                scratch.names()
            );
            let found = FILES.map(|name| read(&scratch.path(name)).unwrap());
            let hidden = FILES.map(|name| read(&scratch.path(&kept(name).to_string_lossy())));
            let is_new = [0, 1].map(|file| found[file] == new(FILES[file]));
            for file in 0..FILES.len() {
                assert!(is_new[file] || found[file] == old(FILES[file]), "{context}");
                assert!(
                    hidden[file].is_none() || hidden[file] == Some(old(FILES[file])),
                    "{context}"
                );
            }
            if result.is_err() && Some(number) <= first_rename {
                assert_eq!(is_new, [false, false], "{context}");
            }
            if Some(number) < first_discard && is_new != [false, false] && result.is_err() {
                assert!(hidden.iter().all(Option::is_some), "{context}");
            }
            if result.is_ok() || Some(number) >= first_discard {
                assert_eq!(is_new, [true, true], "{context}");
            }
        }
    }
}

#[test]
fn the_second_name_is_the_same_file_and_outlives_its_replacement() {
    let scratch = scratch_with_step();
    let before = FILES.map(|name| inode(&scratch.path(name)));
    let (mut commit, _) = begin(Script::default(), true);
    write_and_keep(&mut commit, &scratch).unwrap();
    publish(&mut commit, &scratch).unwrap();
    drop(commit);
    for (name, before) in FILES.iter().zip(before) {
        let hidden = scratch.path(&kept(name).to_string_lossy());
        assert_eq!(inode(&hidden), before);
        assert_eq!(read(&hidden), Some(old(name)));
        assert_eq!(read(&scratch.path(name)), Some(new(name)));
    }
}

#[test]
fn a_second_name_that_is_taken_becomes_that_of_the_file_that_is_there_now() {
    let scratch = scratch_with_step();
    let path = scratch.path("model.pt");
    let hidden = scratch.path(&kept("model.pt").to_string_lossy());
    std::fs::write(&hidden, b"something else").unwrap();
    let (mut commit, script) = begin(Script::default(), true);
    for _ in 0..2 {
        assert!(commit.keep(&path, SAVE_ID).unwrap());
        assert_eq!(inode(&hidden), inode(&path));
        let hidden_name = kept("model.pt").into_string().unwrap();
        assert_eq!(scratch.names(), [&hidden_name, "model.pt", "optim.pt"]);
    }
    assert_eq!(script.count("unlink"), 0, "the name was never free");
    assert_eq!(script.count("rename"), 1, "it was the same file already");
}

#[test]
fn a_hidden_name_that_stands_for_another_file_by_now_is_not_discarded() {
    let scratch = scratch_with_step();
    let hidden = scratch.path(&kept("model.pt").to_string_lossy());
    std::fs::write(&hidden, b"found useless").unwrap();
    let useless = judged(&scratch, &[kept("model.pt")]);
    std::fs::rename(scratch.path("optim.pt"), &hidden).unwrap();
    let (mut commit, _) = begin(Script::default(), true);
    let here = scratch.path("");
    commit
        .discard(&here, &useless, true, &mut Unobserved)
        .unwrap();
    assert_eq!(read(&hidden), Some(old("optim.pt")));
}

#[test]
fn without_hard_links_the_file_is_renamed_and_comes_back_unless_it_was_replaced() {
    for errno in [EPERM, EMLINK, ENOSYS, EOPNOTSUPP] {
        let refused = || Script {
            fail_named: Some(("link", errno)),
            ..Script::default()
        };
        let scratch = scratch_with_step();
        let (mut commit, _) = begin(refused(), true);
        write_and_keep(&mut commit, &scratch).unwrap();
        assert!(!scratch.path("model.pt").exists());
        drop(commit);
        assert_eq!(scratch.names(), ["model.pt", "optim.pt"], "{errno}");
        assert_eq!(read(&scratch.path("model.pt")), Some(old("model.pt")));

        let (mut commit, _) = begin(refused(), true);
        write_and_keep(&mut commit, &scratch).unwrap();
        commit
            .publish(&[&scratch.path("optim.pt")], &mut Unobserved)
            .unwrap();
        drop(commit);
        // The step was begun: all that is left of the old one is hidden, under names of one kind.
        assert_eq!(read(&scratch.path("optim.pt")), Some(new("optim.pt")));
        assert!(!scratch.path("model.pt").exists());
        for name in FILES {
            let hidden = scratch.path(&kept(name).to_string_lossy());
            assert_eq!(read(&hidden), Some(old(name)), "{errno}");
        }
    }
}

#[test]
fn without_hard_links_whatever_fails_every_old_file_is_there_until_all_are_new() {
    let refused = |fail| Script {
        fail,
        fail_named: Some(("link", EPERM)),
        ..Script::default()
    };
    let scratch = scratch_with_step();
    let (mut commit, counted) = begin(refused(None), true);
    replace_step(&mut commit, &scratch).unwrap();
    let operations = counted.log.lock().unwrap().clone();
    for (number, name) in operations.iter().enumerate() {
        let context = format!("{name} (operation {number}) fails");
        let scratch = scratch_with_step();
        let (mut commit, _) = begin(refused(Some((number, EIO))), true);
        let result = replace_step(&mut commit, &scratch);
        drop(commit);
        if !is_survived(name, EIO) {
            assert_reported(&result, EIO, &scratch, &context);
        }
        let has = |name: &str, wanted: Vec<u8>| read(&scratch.path(name)) == Some(wanted);
        let is_all_new = FILES.iter().all(|name| has(name, new(name)));
        for name in FILES {
            let is_hidden = has(&kept(name).to_string_lossy(), old(name));
            assert!(
                is_all_new || is_hidden || has(name, old(name)),
                "{context}: {name} is lost of {:?}",
                scratch.names()
            );
        }
    }
}

#[test]
fn a_file_that_comes_back_does_not_replace_what_somebody_else_saved_meanwhile() {
    let scratch = scratch_with_step();
    let path = scratch.path("model.pt");
    let (mut commit, _) = begin(
        Script {
            fail_named: Some(("link", EPERM)),
            ..Script::default()
        },
        true,
    );
    assert!(commit.keep(&path, SAVE_ID).unwrap());
    std::fs::write(&path, b"of another process").unwrap();
    drop(commit);
    assert_eq!(read(&path).unwrap(), b"of another process");
}

#[test]
fn where_there_is_no_file_none_is_kept() {
    let scratch = scratch_with_step();
    std::fs::create_dir(scratch.path("elsewhere")).unwrap();
    let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, scratch.path(name)).unwrap();
    link("nothing.pt", "dangling.pt");
    link("./model.pt", "here.pt");
    let (mut commit, _) = begin(Script::default(), true);
    for (name, expected) in [
        ("missing.pt", false),
        ("dangling.pt", false),
        ("here.pt", true),
    ] {
        let result = commit.keep(&scratch.path(name), SAVE_ID);
        assert_eq!(result.unwrap(), expected, "{name}");
        let hidden = scratch.path(&kept(name).to_string_lossy());
        assert_eq!(read(&hidden), expected.then(|| old("model.pt")), "{name}");
    }
    assert_eq!(
        errno_and_phase(commit.keep(&scratch.path("elsewhere"), SAVE_ID)),
        (Some(EISDIR), Phase::Inspect)
    );
}

#[test]
fn a_failed_fsync_of_the_second_names_ends_the_commit_before_anything_is_renamed() {
    let scratch = scratch_with_step();
    let (mut commit, script) = begin(
        Script {
            fail_named: Some(("sync_directory", EIO)),
            ..Script::default()
        },
        true,
    );
    write_and_keep(&mut commit, &scratch).unwrap();
    let attempts = [0, 1]
        .map(|_| errno_and_phase(commit.publish(&[&scratch.path("model.pt")], &mut Unobserved)));
    assert_eq!(
        attempts,
        [(Some(EIO), Phase::SyncDirectory), (None, Phase::Rename)]
    );
    assert_eq!(script.count("rename"), 0);
    assert_eq!(script.count("sync_directory"), 1, "it was not tried again");
    assert_eq!(read(&scratch.path("model.pt")), Some(old("model.pt")));
}

#[test]
fn only_hidden_names_are_discarded_and_only_once_the_directory_is_durable() {
    let scratch = scratch_with_step();
    let hidden = kept("model.pt");
    std::fs::write(scratch.path(&hidden.to_string_lossy()), b"old").unwrap();
    let here = scratch.path("");
    let (mut commit, script) = begin(
        Script {
            fail_named: Some(("sync_directory", EIO)),
            ..Script::default()
        },
        true,
    );
    for foreign in [
        "model.pt",
        "fastckpt-1",
        ".fastckpt",
        "",
        ".fastckpt-/../model.pt",
        "../.fastckpt-1",
    ] {
        let names = judged(&scratch, &[hidden.clone(), foreign.into()]);
        match commit.discard(&here, &names, true, &mut Unobserved) {
            Err(Error::Io { phase, source, .. }) => {
                assert_eq!(
                    (phase, source.kind()),
                    (Phase::Discard, std::io::ErrorKind::InvalidInput)
                );
                assert_eq!(source.to_string(), "hidden names begin with .fastckpt-");
            }
            other => panic!("{foreign}: {other:?}"),
        }
    }
    let names = judged(&scratch, &[hidden.clone(), ".fastckpt-that-is-gone".into()]);
    assert_eq!(
        errno_and_phase(commit.discard(&here, &names, true, &mut Unobserved)),
        (Some(EIO), Phase::SyncDirectory)
    );
    assert_eq!(script.count("unlink"), 0);
    let (mut commit, script) = begin(Script::default(), true);
    commit.discard(&here, &[], true, &mut Unobserved).unwrap();
    assert_eq!(script.count("sync_directory"), 0, "there was nothing to do");
    commit
        .discard(&here, &names, true, &mut Unobserved)
        .unwrap();
    assert_eq!(scratch.names(), ["model.pt", "optim.pt"]);
}
