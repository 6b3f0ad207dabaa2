//! A saver renames and removes its own files only, whoever else works in the directory.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;

use fastckpt_core::commit::{Commit, FileIdentity, Place, Publication};
use fastckpt_core::files::{Files, RealFiles};
use fastckpt_core::job::{Observer, Stop, Unobserved};
use fastckpt_core::{Error, Phase, stale};
use libc::{EEXIST, ENOENT, ESTALE};
use support::{Scratch, Script, ScriptedFiles};

fn temp_name(number: u64) -> String {
    format!(".fastckpt-{}-{number}.tmp", std::process::id())
}

fn begin(script: Script) -> (Commit, Arc<Script>) {
    let script = Arc::new(script);
    let files = ScriptedFiles(Arc::clone(&script));
    (Commit::new(Arc::new(files), true), script)
}

fn drawing(numbers: &'static [u64]) -> Script {
    Script {
        numbers,
        ..Script::default()
    }
}

fn write(commit: &mut Commit, path: &Path, bytes: &[u8]) -> fastckpt_core::Result<()> {
    commit.write_bytes(path, bytes, &mut Unobserved)
}

fn system_error(result: fastckpt_core::Result<()>) -> (Option<i32>, Phase) {
    match result {
        Err(Error::Io { source, phase, .. }) => (source.raw_os_error(), phase),
        other => panic!("{other:?}"),
    }
}

#[test]
fn two_processes_of_one_pid_that_draw_one_number_take_two_names() {
    let scratch = Scratch::new();
    let (mut first, _) = begin(drawing(&[5, 6]));
    let (mut second, _) = begin(drawing(&[5, 6]));
    let (a, b) = (scratch.path("a.pt"), scratch.path("b.pt"));
    write(&mut first, &a, b"first").unwrap();
    write(&mut second, &b, b"second").unwrap();
    let mut names = [temp_name(5), temp_name(6)];
    names.sort();
    assert_eq!(scratch.names(), names);
    drop(first);
    assert_eq!(scratch.names(), [temp_name(6)], "only its own was removed");
    second.publish(&[&b], &mut Unobserved).unwrap();
    assert_eq!(scratch.names(), ["b.pt"]);
}

#[test]
fn random_names_that_are_all_taken_are_an_error_and_none_is_removed() {
    let scratch = Scratch::new();
    std::fs::write(scratch.path(&temp_name(5)), b"somebody's").unwrap();
    let held = RealFiles.open(&scratch.path(&temp_name(5))).unwrap();
    held.lock().unwrap();
    let (mut commit, _) = begin(drawing(&[5]));
    let result = write(&mut commit, &scratch.path("a.pt"), b"new");
    assert_eq!(system_error(result), (Some(EEXIST), Phase::Create));
    assert_eq!(scratch.names(), [temp_name(5)]);
}

#[test]
fn a_file_that_was_swept_before_its_lock_takes_no_name_of_another_saver_along() {
    let scratch = Scratch::new();
    let first = scratch.path(&temp_name(5));
    let (mut commit, _) = begin(Script {
        // The file is swept, and its name goes to another saver.
        meanwhile: Some(Box::new(move |_created, name| {
            if first.ends_with(name) {
                std::fs::remove_file(&first).unwrap();
                std::fs::write(&first, b"half of what another saver writes").unwrap();
            }
        })),
        ..drawing(&[5, 6])
    });
    let path = scratch.path("a.pt");
    write(&mut commit, &path, b"new").unwrap();
    commit.publish(&[&path], &mut Unobserved).unwrap();
    drop(commit);
    assert_eq!(std::fs::read(&path).unwrap(), b"new");
    let other = std::fs::read(scratch.path(&temp_name(5))).unwrap();
    assert_eq!(other, b"half of what another saver writes");
}

#[test]
fn what_is_no_longer_its_own_is_neither_published_nor_removed() {
    for replaced in [false, true] {
        let scratch = Scratch::new();
        let path = scratch.path("a.pt");
        std::fs::write(&path, b"old").unwrap();
        let (mut commit, _) = begin(Script::default());
        write(&mut commit, &path, b"new").unwrap();
        let temporary = commit.temporary_path(&path).unwrap();
        std::fs::remove_file(&temporary).unwrap();
        if replaced {
            std::fs::write(&temporary, b"another's").unwrap();
        }
        match commit.publish(&[&path], &mut Unobserved) {
            Err(Error::Io { phase, source, .. }) => {
                assert_eq!(
                    (phase, source.kind()),
                    (Phase::Rename, io::ErrorKind::NotFound)
                );
                let words = "another process has removed the temporary file";
                assert_eq!(source.to_string(), words);
            }
            other => panic!("{other:?}"),
        }
        drop(commit);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(temporary.exists(), replaced);
    }
}

#[test]
fn collecting_the_files_of_the_dead_removes_no_name_that_has_changed_hands() {
    let scratch = Scratch::new();
    let name = temp_name(5);
    let (path, here) = (scratch.path(&name), scratch.path(""));
    std::fs::write(&path, b"of a dead process").unwrap();
    let files = ScriptedFiles(Arc::new(Script {
        meanwhile: Some(Box::new(move |_opened, _name| {
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, b"new saver's").unwrap();
        })),
        ..Script::default()
    }));
    let directory = files.open_directory(&here).unwrap();
    let removed = stale::remove_stale(&files, &here, &*directory).unwrap();
    assert!(removed.is_empty(), "{removed:?}");
    assert_eq!(std::fs::read(scratch.path(&name)).unwrap(), b"new saver's");
}

fn publish_to_free(commit: &mut Commit, path: &Path) -> fastckpt_core::Result<()> {
    let publication = Publication {
        paths: &[path],
        place: Place::Free,
        unchanged: &[],
    };
    commit.publish_as(&publication, &mut Unobserved)
}

#[test]
fn a_place_that_has_to_be_free_is_never_overwritten_whatever_the_file_system_has() {
    let all: [&[_]; 3] = [&[], &["rename_new"], &["rename_new", "link"]];
    for missing in all {
        let scratch = Scratch::new();
        let (free, taken) = (scratch.path("free.pt"), scratch.path("taken.pt"));
        let (mut commit, _) = begin(Script {
            missing,
            ..Script::default()
        });
        write(&mut commit, &free, b"new").unwrap();
        write(&mut commit, &taken, b"new").unwrap();
        std::fs::write(&taken, b"somebody's").unwrap();
        publish_to_free(&mut commit, &free).unwrap();
        let refused = system_error(publish_to_free(&mut commit, &taken));
        assert_eq!(refused, (Some(EEXIST), Phase::Rename), "{missing:?}");
        drop(commit);
        assert_eq!(std::fs::read(&free).unwrap(), b"new");
        assert_eq!(std::fs::read(&taken).unwrap(), b"somebody's");
        assert_eq!(scratch.names(), ["free.pt", "taken.pt"], "{missing:?}");
    }
}

#[test]
fn nothing_is_published_beside_files_that_are_not_what_they_were() {
    let scratch = Scratch::new();
    let (shard, model) = (scratch.path("shard.pt"), scratch.path("model.pt"));
    std::fs::write(&shard, b"shard").unwrap();
    let found = RealFiles.inspect(&shard).unwrap().unwrap();
    let identity = FileIdentity {
        device: found.device,
        inode: found.inode,
        nbytes: found.nbytes,
        modified_ns: found.modified_ns,
    };
    for change in [0, 1, 2] {
        let unchanged = [(shard.clone(), identity)];
        let publication = Publication {
            paths: &[&model],
            place: Place::Free,
            unchanged: &unchanged,
        };
        let (mut commit, _) = begin(Script::default());
        write(&mut commit, &model, b"model").unwrap();
        match change {
            0 => {}
            1 => std::fs::rename(&model, &shard).unwrap(),
            _ => std::fs::remove_file(&shard).unwrap(),
        }
        let result = commit.publish_as(&publication, &mut Unobserved);
        if change == 0 {
            result.unwrap();
            assert!(model.exists());
        } else {
            assert_eq!(system_error(result), (Some(ESTALE), Phase::Inspect));
            drop(commit);
            assert!(!model.exists());
        }
    }
}

#[test]
fn a_saver_shares_the_lock_and_never_holds_it_when_it_is_done() {
    let scratch = Scratch::new();
    let (mut commit, script) = begin(Script::default());
    let path = scratch.path("a.pt");
    let other = RealFiles.open_directory(&scratch.path("")).unwrap();
    other.lock_shared().unwrap();
    write(&mut commit, &path, b"new").unwrap();
    commit.publish(&[&path], &mut Unobserved).unwrap();
    assert!(commit.unlocked().is_empty());
    let log = script.log.lock().unwrap().clone();
    let order: Vec<_> = log
        .iter()
        .copied()
        .filter(|name| ["lock_shared", "rename", "unlock", "sync_directory"].contains(name))
        .collect();
    assert_eq!(order, ["lock_shared", "rename", "unlock", "sync_directory"]);
}

/// Stops at the first look.
struct Impatient;

impl Observer for Impatient {
    fn poll(&mut self, _done: u64, _total: u64) -> Result<(), Stop> {
        Err(Stop)
    }
}

#[test]
fn a_saver_goes_on_without_a_lock_that_it_cannot_have_and_says_so() {
    let scratch = Scratch::new();
    let path = scratch.path("a.pt");
    let holder = std::fs::File::open(scratch.path("")).unwrap();
    holder.lock().unwrap();
    let (mut commit, _) = begin(Script::default());
    write(&mut commit, &path, b"interrupted").unwrap();
    let interrupted = commit.publish(&[&path], &mut Impatient);
    assert!(
        matches!(interrupted, Err(Error::Interrupted)),
        "{interrupted:?}"
    );
    assert!(!path.exists());
    write(&mut commit, &path, b"new").unwrap();
    commit.publish(&[&path], &mut Unobserved).unwrap();
    assert_eq!(commit.unlocked(), [scratch.path("")]);
    assert_eq!(std::fs::read(&path).unwrap(), b"new");
}

#[test]
fn a_saver_needs_no_lock_where_directories_have_none() {
    let scratch = Scratch::new();
    let path = scratch.path("a.pt");
    let (mut commit, _) = begin(Script {
        missing: &["lock_shared", "unlock"],
        ..Script::default()
    });
    write(&mut commit, &path, b"new").unwrap();
    commit.publish(&[&path], &mut Unobserved).unwrap();
    assert!(commit.unlocked().is_empty(), "that is how things are here");
    assert_eq!(std::fs::read(&path).unwrap(), b"new");
}

#[test]
fn a_second_name_is_given_in_one_step_and_to_the_file_that_is_there() {
    let scratch = Scratch::new();
    for name in ["a.pt", "b.pt"] {
        std::fs::write(scratch.path(name), name).unwrap();
    }
    let (mut commit, script) = begin(Script::default());
    let mut link = |path: &str| {
        let best = OsStr::new("best.pt");
        commit.link(&scratch.path(path), best, &mut Unobserved)
    };
    for name in ["a.pt", "a.pt", "b.pt", "a.pt"] {
        assert!(link(name).unwrap());
        assert_eq!(
            std::fs::read_to_string(scratch.path("best.pt")).unwrap(),
            name
        );
        assert_eq!(scratch.names(), ["a.pt", "b.pt", "best.pt"]);
    }
    assert_eq!(script.count("unlink"), 0, "best.pt was never gone");
    assert_eq!(script.count("sync_directory"), 4);
    match link("missing.pt") {
        Err(Error::Io { phase, source, .. }) => {
            assert_eq!((phase, source.raw_os_error()), (Phase::Link, Some(ENOENT)));
        }
        other => panic!("{other:?}"),
    }
}
