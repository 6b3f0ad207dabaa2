//! Files of a step that a symbolic link leads to, on a bigger disk say, are kept like all others.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fastckpt_core::commit::{Commit, Judged};
use fastckpt_core::job::Unobserved;
use libc::EPERM;
use support::{Scratch, Script, ScriptedFiles};

const SAVE_ID: u64 = 7;
const HIDDEN: &str = "run/.fastckpt-00000000000007-optim.pt.kept";
const BESIDE: &str = "big/.fastckpt-00000000000007-shard.bin.kept";

/// A run whose shard lies elsewhere: `run/optim.pt` leads to `big/shard.bin`, over `links` links.
fn scratch_with_linked_shard(is_absolute: bool, links: usize) -> Scratch {
    let scratch = Scratch::new();
    for directory in ["run", "big", "between"] {
        std::fs::create_dir(scratch.path(directory)).unwrap();
    }
    std::fs::write(scratch.path("big/shard.bin"), b"the old shard").unwrap();
    let target = |path: &str| {
        let relative = Path::new("..").join(path);
        if is_absolute {
            scratch.path(path)
        } else {
            relative
        }
    };
    if links == 2 {
        symlink(target("big/shard.bin"), scratch.path("between/link")).unwrap();
        symlink(target("between/link"), scratch.path("run/optim.pt")).unwrap();
    } else {
        symlink(target("big/shard.bin"), scratch.path("run/optim.pt")).unwrap();
    }
    scratch
}

fn begin(has_links: bool) -> (Commit, Arc<Script>) {
    let script = Arc::new(Script {
        fail_named: (!has_links).then_some(("link", EPERM)),
        ..Script::default()
    });
    let commit = Commit::new(Arc::new(ScriptedFiles(Arc::clone(&script))), true);
    (commit, script)
}

fn replace(commit: &mut Commit, path: &Path) {
    commit
        .write_bytes(path, b"the new shard", &mut Unobserved)
        .unwrap();
    assert!(commit.keep(path, SAVE_ID).unwrap());
}

fn read(path: PathBuf) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

#[test]
fn a_linked_file_is_kept_beside_its_target_and_found_through_a_link() {
    for (is_absolute, links) in [(false, 1), (true, 1), (false, 2), (true, 2)] {
        for has_links in [true, false] {
            let scratch = scratch_with_linked_shard(is_absolute, links);
            let path = scratch.path("run/optim.pt");
            let before = std::fs::metadata(&path).unwrap().ino();
            let (mut commit, script) = begin(has_links);
            replace(&mut commit, &path);
            commit.publish(&[&path], &mut Unobserved).unwrap();
            drop(commit);
            assert!(std::fs::symlink_metadata(&path).unwrap().is_symlink());
            assert_eq!(read(path), b"the new shard");
            assert_eq!(read(scratch.path(HIDDEN)), b"the old shard");
            let beside = std::fs::symlink_metadata(scratch.path(BESIDE)).unwrap();
            assert_eq!(beside.ino(), before);
            // Both names are durable before anything is renamed over the file.
            let log = script.log.lock().unwrap().join(" ");
            assert!(log.contains("sync_directory sync_directory"), "{log}");
        }
    }
}

#[test]
fn a_commit_that_ends_before_it_publishes_puts_a_linked_file_back() {
    for has_links in [true, false] {
        let scratch = scratch_with_linked_shard(false, 1);
        let path = scratch.path("run/optim.pt");
        let (mut commit, _) = begin(has_links);
        replace(&mut commit, &path);
        assert_eq!(path.exists(), has_links);
        drop(commit);
        assert_eq!(read(path), b"the old shard");
    }
}

#[test]
fn discarding_the_second_name_of_a_linked_file_removes_both_and_nothing_else() {
    let scratch = scratch_with_linked_shard(false, 1);
    let path = scratch.path("run/optim.pt");
    let (mut commit, _) = begin(true);
    replace(&mut commit, &path);
    commit.publish(&[&path], &mut Unobserved).unwrap();
    // Links of this form that lead to anything else are removed alone.
    symlink("../big/shard.bin", scratch.path("run/.fastckpt-1.kept")).unwrap();
    symlink("nowhere/x", scratch.path("run/.fastckpt-2.kept")).unwrap();
    let names = [
        ".fastckpt-00000000000007-optim.pt.kept",
        ".fastckpt-1.kept",
        ".fastckpt-2.kept",
    ];
    let judged = names.map(|name| {
        let found = std::fs::symlink_metadata(scratch.path("run").join(name)).unwrap();
        Judged {
            name: name.into(),
            device: found.dev(),
            inode: found.ino(),
        }
    });
    commit
        .discard(&scratch.path("run"), &judged, true, &mut Unobserved)
        .unwrap();
    let names = |directory| {
        let entries = std::fs::read_dir(scratch.path(directory)).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name())
            .collect::<Vec<_>>()
    };
    assert_eq!(names("run"), ["optim.pt"]);
    assert_eq!(names("big"), ["shard.bin"]);
    assert_eq!(read(path), b"the new shard");
}
