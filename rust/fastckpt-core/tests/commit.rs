//! A file is there whole or not at all, and a failed save leaves what was there.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "support/saving.rs"]
mod saving;
mod support;

use std::num::NonZeroUsize;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fastckpt_core::commit::Commit;
use fastckpt_core::files::{Files, RealFiles};
use fastckpt_core::job::Unobserved;
use fastckpt_core::write::{WriteOptions, Written};
use fastckpt_core::{Error, Phase, stale};
use libc::{EDQUOT, EINVAL, EIO, EISDIR, ELOOP, ENOENT, ENOSPC};
use saving::{BLOCK, oracle, payload, payloads, plan_of, save, threads};
use support::{Free, Scratch, Script, ScriptedFiles};

#[test]
fn every_operation_that_fails_is_reported_and_leaves_the_old_file() {
    let storages = payloads(&[100_000, 0, 17]);
    let plan = plan_of(&storages, 64);
    let options = WriteOptions {
        threads: threads(1),
        chunk_nbytes: NonZeroUsize::new(8 * BLOCK),
        direct: None,
    };
    let scratch = Scratch::new();
    let path = scratch.path("model.pt");
    // Counted over an old file, as below: a new one takes its mode.
    std::fs::write(&path, b"the old checkpoint").unwrap();
    let (_, counted) = save(&path, &plan, &options, Script::default());
    let operations = counted.log.lock().unwrap().clone();
    assert!(operations.len() > 10, "{operations:?}");
    for errno in [EIO, ENOSPC] {
        for (number, name) in operations.iter().enumerate() {
            std::fs::write(&path, b"the old checkpoint").unwrap();
            let (result, script) = save(
                &path,
                &plan,
                &options,
                Script {
                    fail: Some((number, errno)),
                    ..Script::default()
                },
            );
            let context = format!("{name} (operation {number}) fails with {errno}");
            if ["is_local", "names", "protects", "lock_shared", "unlock"].contains(name) {
                // Housekeeping: the save does not depend on it.
                result.expect(&context);
                continue;
            }
            match result.expect_err(&context) {
                Error::CommitUnknown { source, .. } => {
                    assert_eq!(
                        (*name, source.raw_os_error()),
                        ("sync_directory", Some(errno)),
                        "{context}"
                    );
                    assert!(
                        std::fs::read(&path).unwrap() == oracle(&storages, 64),
                        "{context}"
                    );
                    continue;
                }
                Error::Io {
                    source,
                    path: reported,
                    ..
                }
                | Error::NoSpace {
                    source,
                    path: reported,
                    ..
                } => {
                    assert_eq!(source.raw_os_error(), Some(errno), "{context}");
                    assert!(
                        reported.starts_with(scratch.path("")),
                        "{context}: {reported:?}"
                    );
                }
                other => panic!("{context}: {other:?}"),
            }
            assert_eq!(
                std::fs::read(&path).unwrap(),
                b"the old checkpoint",
                "{context}"
            );
            assert_eq!(scratch.names(), ["model.pt"], "{context}");
            assert!(
                script.count("sync") <= 1,
                "{context}: fsync was tried again"
            );
        }
    }
}

#[test]
fn the_order_is_write_fsync_rename_fsync_of_the_directory() {
    let scratch = Scratch::new();
    let (result, script) = save(
        &scratch.path("model.pt"),
        &plan_of(&payloads(&[10]), 64),
        &WriteOptions::default(),
        Script::default(),
    );
    result.unwrap();
    let log = script.log.lock().unwrap();
    let order: Vec<_> = log
        .iter()
        .filter(|name| ["write_at", "truncate", "sync", "rename", "sync_directory"].contains(name))
        .collect();
    assert_eq!(
        order,
        [
            &"write_at",
            &"truncate",
            &"sync",
            &"rename",
            &"sync_directory"
        ]
    );
}

#[test]
fn a_file_can_be_read_back_before_anybody_else_sees_it() {
    let scratch = Scratch::new();
    let path = scratch.path("model.pt");
    let mut commit = Commit::new(Arc::new(RealFiles), true);
    assert_eq!(commit.temporary_path(&path), None);
    commit
        .write_bytes(&path, b"the new one", &mut Unobserved)
        .unwrap();
    let temporary = commit.temporary_path(&path).unwrap();
    assert_eq!(std::fs::read(&temporary).unwrap(), b"the new one");
    assert!(!path.exists());
    commit.publish(&[&path], &mut Unobserved).unwrap();
    assert_eq!(commit.temporary_path(&path), None);
    assert!(path.exists() && !temporary.exists());
}

#[test]
fn a_new_file_obeys_the_umask_and_a_replaced_one_keeps_its_mode() {
    let scratch = Scratch::new();
    let (other, path) = (scratch.path("other"), scratch.path("model.pt"));
    std::fs::write(&other, b"").unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let plan = plan_of(&payloads(&[10]), 64);
    save(&path, &plan, &WriteOptions::default(), Script::default())
        .0
        .unwrap();
    assert_eq!(mode(&path), mode(&other));
    for wanted in [0o600, 0o640, 0o444, 0o755] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(wanted)).unwrap();
        save(&path, &plan, &WriteOptions::default(), Script::default())
            .0
            .unwrap();
        assert_eq!(mode(&path), wanted);
    }
}

#[test]
fn symbolic_links_are_followed_and_other_things_refused() {
    let scratch = Scratch::new();
    std::fs::create_dir(scratch.path("elsewhere")).unwrap();
    let plan = plan_of(&payloads(&[10]), 64);
    let attempt = |name: &str| {
        save(
            &scratch.path(name),
            &plan,
            &WriteOptions::default(),
            Script::default(),
        )
        .0
    };

    std::os::unix::fs::symlink("elsewhere/target.pt", scratch.path("link.pt")).unwrap();
    attempt("link.pt").unwrap();
    assert!(
        std::fs::symlink_metadata(scratch.path("link.pt"))
            .unwrap()
            .is_symlink()
    );
    assert!(scratch.path("elsewhere/target.pt").is_file());

    std::os::unix::fs::symlink("loop.pt", scratch.path("loop.pt")).unwrap();
    let errno_of = |result: Result<Written, Error>| match result {
        Err(Error::Io { source, phase, .. }) => (source.raw_os_error(), phase),
        other => panic!("{other:?}"),
    };
    assert_eq!(errno_of(attempt("loop.pt")), (Some(ELOOP), Phase::Inspect));
    assert_eq!(
        errno_of(attempt("elsewhere")),
        (Some(EISDIR), Phase::Inspect)
    );
    assert_eq!(
        errno_of(attempt("missing/model.pt")),
        (Some(ENOENT), Phase::OpenDirectory)
    );
    assert_eq!(
        errno_of(
            save(
                Path::new("/dev/null"),
                &plan,
                &WriteOptions::default(),
                Script::default()
            )
            .0
        )
        .0,
        Some(EINVAL)
    );
}

#[test]
fn the_last_of_several_saves_at_once_wins_and_is_whole() {
    let scratch = Scratch::new();
    let path = scratch.path("model.pt");
    let candidates: Vec<_> = (1..5).map(|seed| vec![payload(seed, 300_000)]).collect();
    let finished = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for storages in &candidates {
            scope.spawn(|| {
                for _ in 0..5 {
                    save(
                        &path,
                        &plan_of(storages, 64),
                        &WriteOptions::default(),
                        Script::default(),
                    )
                    .0
                    .unwrap();
                }
                finished.fetch_add(1, Ordering::Relaxed);
            });
        }
        while finished.load(Ordering::Relaxed) < candidates.len() {
            if let Ok(bytes) = std::fs::read(&path) {
                assert!(
                    candidates
                        .iter()
                        .any(|storages| oracle(storages, 64) == bytes)
                );
            }
        }
    });
    assert_eq!(scratch.names(), ["model.pt"]);
}

#[test]
fn directories_are_created_and_their_parents_synced() {
    let scratch = Scratch::new();
    let script = Arc::new(Script::default());
    let mut commit = Commit::new(Arc::new(ScriptedFiles(Arc::clone(&script))), true);
    let deep = scratch.path("a/b/c");
    commit.create_directory(&deep, &mut Unobserved).unwrap();
    assert!(deep.is_dir());
    assert_eq!(script.count("sync_directory"), 3);
    commit.create_directory(&deep, &mut Unobserved).unwrap();
    assert_eq!(script.count("sync_directory"), 3, "nothing was created");
    std::fs::write(scratch.path("file"), b"").unwrap();
    for taken in ["file", "file/below"] {
        let result = commit.create_directory(&scratch.path(taken), &mut Unobserved);
        assert!(
            matches!(result, Err(Error::Io { .. })),
            "{taken}: {result:?}"
        );
    }
}

#[test]
fn a_save_removes_the_temporary_files_of_the_dead_and_no_others() {
    let scratch = Scratch::new();
    let dead = ".fastckpt-1-0.tmp";
    for name in [
        dead,
        ".fastckpt-1-0.tmp.bak",
        "model_000001.tmp",
        "notes.txt",
    ] {
        std::fs::write(scratch.path(name), b"something").unwrap();
    }
    // The living: somebody who is writing right now, in this process or in another one.
    let alive = ".fastckpt-2-0.tmp";
    std::fs::write(scratch.path(alive), b"half a checkpoint").unwrap();
    let held = RealFiles.open(&scratch.path(alive)).unwrap();
    held.lock().unwrap();
    let plan = plan_of(&payloads(&[10]), 64);
    let attempt = || {
        save(
            &scratch.path("model.pt"),
            &plan,
            &WriteOptions::default(),
            Script::default(),
        )
        .0
    };
    attempt().unwrap();
    let left = [
        ".fastckpt-1-0.tmp.bak",
        alive,
        "model.pt",
        "model_000001.tmp",
        "notes.txt",
    ];
    assert_eq!(scratch.names(), left);
    drop(held);
    attempt().unwrap();
    assert!(!scratch.path(alive).exists());
}

#[test]
fn the_dead_are_named_without_being_removed() {
    let scratch = Scratch::new();
    for name in [".fastckpt-1-0.tmp", ".fastckpt-2-0.tmp", "model.pt"] {
        std::fs::write(scratch.path(name), b"something").unwrap();
    }
    let held = RealFiles.open(&scratch.path(".fastckpt-2-0.tmp")).unwrap();
    held.lock().unwrap();
    let path = scratch.path("");
    let directory = RealFiles.open_directory(&path).unwrap();
    for _ in 0..2 {
        let names = stale::list_stale(&RealFiles, &path, &*directory).unwrap();
        assert_eq!(names, [".fastckpt-1-0.tmp"]);
    }
    let removed = stale::remove_stale(&RealFiles, &path, &*directory).unwrap();
    assert_eq!(removed, [".fastckpt-1-0.tmp"]);
    assert_eq!(scratch.names(), [".fastckpt-2-0.tmp", "model.pt"]);
}

#[test]
fn a_save_for_which_there_is_no_room_is_refused_with_both_figures() {
    let scratch = Scratch::new();
    let attempt = |free, fail_named, directory: &str| {
        let script = Script {
            fail_named,
            free,
            ..Script::default()
        };
        Commit::new(Arc::new(ScriptedFiles(Arc::new(script))), true)
            .require_space(&scratch.path(directory), 1_234_567)
    };
    match attempt(Free::Nbytes(456), None, "") {
        Err(error @ Error::NoSpace { .. }) => assert_eq!(
            error.to_string(),
            format!(
                "No space left on device (os error 28): 1,234,567 bytes are needed and 456 are \
                 free (while checking the free space): {}",
                scratch.path("").display()
            )
        ),
        other => panic!("{other:?}"),
    }
    assert!(matches!(
        attempt(Free::Nbytes(1_234_566), None, ""),
        Err(Error::NoSpace {
            needed: 1_234_567,
            free: Some(1_234_566),
            ..
        })
    ));
    attempt(Free::Nbytes(1_234_567), None, "").unwrap();
    attempt(Free::Unknown, None, "").unwrap();
    attempt(Free::Real, Some(("free_nbytes", EIO)), "").unwrap();
    assert!(matches!(
        attempt(Free::Real, None, "missing"),
        Err(Error::Io {
            phase: Phase::OpenDirectory,
            ..
        })
    ));
}

#[test]
fn a_disk_that_fills_up_meanwhile_is_asked_again_once_the_half_file_is_gone() {
    let scratch = Scratch::new();
    let path = scratch.path("model.pt");
    let plan = plan_of(&payloads(&[100_000]), 64);
    let attempt = |operation, errno, free| {
        let (result, script) = save(
            &path,
            &plan,
            &WriteOptions::default(),
            Script {
                fail_named: Some((operation, errno)),
                free,
                ..Script::default()
            },
        );
        let log = script.log.lock().unwrap().clone();
        (result.unwrap_err(), log)
    };
    for (operation, doing) in [
        ("allocate", "reserving disk space"),
        ("write_at", "writing"),
        ("sync", "flushing the file to disk (fsync)"),
    ] {
        let (error, log) = attempt(operation, ENOSPC, Free::Nbytes(70_000));
        let nbytes = plan.nbytes();
        assert_eq!(nbytes, 101_403);
        assert_eq!(
            error.to_string(),
            format!(
                "No space left on device (os error 28): 101,403 bytes are needed and 70,000 are \
                 free (while {doing}): {}",
                path.display()
            )
        );
        assert_eq!(log[log.len() - 2..], ["unlink", "free_nbytes"]);
        let (error, _) = attempt(operation, EDQUOT, Free::Nbytes(70_000));
        assert_eq!(
            error.to_string(),
            format!(
                "Disk quota exceeded (os error 122): 101,403 bytes are needed (while {doing}): {}",
                path.display()
            )
        );
        let (error, _) = attempt(operation, ENOSPC, Free::Unknown);
        assert_eq!(
            error.to_string(),
            format!(
                "No space left on device (os error 28) (while {doing}): {}",
                path.display()
            )
        );
        assert_eq!(scratch.names(), [""; 0]);
    }
}

#[test]
#[cfg(target_os = "linux")]
fn the_free_space_is_that_of_the_file_system() {
    let free = |path| {
        let directory = RealFiles.open_directory(Path::new(path)).unwrap();
        directory.free_nbytes().unwrap()
    };
    assert!(free("/tmp").unwrap() > 0);
    // It has files, but no blocks to put any into.
    assert_eq!(free("/proc"), None);
}
