//! The simulated disk keeps what was synced, loses what was not, and nothing in between is missing.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

use fastckpt_core::files::{Directory, File};
use libc::EIO;

use crate::simulated::{Cursor, Effort, Fault, Node, Random, Reach, SimulatedDisk};

const OLD: [u8; 1024] = [1; 1024];
const NEW: [u8; 1024] = [2; 1024];

/// What the root directory may hold after a power cut now: names and contents.
fn outcomes(disk: &SimulatedDisk, directory: &str) -> BTreeSet<Vec<(String, Vec<u8>)>> {
    let (base, record) = disk.recording();
    let mut cursor = Cursor::new(&base, &record);
    while cursor.advance().is_some() {}
    let effort = Effort {
        exhaustive: 3,
        sampled: 2_000,
    };
    let states = cursor.states(effort, &mut Random::new(7));
    let listing = |state: &crate::simulated::State<'_>| {
        let names = state.names(Path::new(directory)).unwrap_or_default();
        let files = names.iter().filter_map(|(name, node)| match node {
            Node::File(inode) => Some((
                name.to_str().unwrap().to_owned(),
                state.bytes(*inode).to_vec(),
            )),
            Node::Directory(_) => None,
        });
        files.collect()
    };
    states.iter().map(listing).collect()
}

fn listing(files: &[(&str, &[u8])]) -> Vec<(String, Vec<u8>)> {
    let owned = |(name, bytes): &(&str, &[u8])| ((*name).to_owned(), bytes.to_vec());
    files.iter().map(owned).collect()
}

fn create(directory: &dyn Directory, name: &str, bytes: &[u8]) -> Arc<dyn File> {
    let file = directory.create(OsStr::new(name), 0o644).unwrap();
    assert_eq!(file.write_at(bytes, 0).unwrap(), bytes.len());
    file
}

fn root(disk: &SimulatedDisk) -> Arc<dyn Directory> {
    disk.files(0).open_directory(Path::new("/")).unwrap()
}

/// A disk with a durable file `a` of these bytes.
fn disk_with_a(bytes: &[u8]) -> SimulatedDisk {
    let disk = SimulatedDisk::new();
    create(&*root(&disk), "a", bytes);
    SimulatedDisk::with(disk.contents())
}

#[test]
fn what_was_synced_is_all_that_is_ever_found() {
    let disk = SimulatedDisk::new();
    let directory = root(&disk);
    create(&*directory, "a", &NEW).sync().unwrap();
    directory.sync().unwrap();
    assert_eq!(outcomes(&disk, "/"), [listing(&[("a", &NEW)])].into());
}

#[test]
fn a_file_that_was_synced_has_its_bytes_wherever_it_has_its_name() {
    let disk = SimulatedDisk::new();
    create(&*root(&disk), "a", &NEW).sync().unwrap();
    let found = outcomes(&disk, "/");
    assert_eq!(found, [listing(&[]), listing(&[("a", &NEW)])].into());
}

#[test]
fn a_write_that_was_not_synced_is_lost_kept_or_torn_between_sectors() {
    let disk = disk_with_a(&OLD);
    let file = disk.files(0).open(Path::new("/a")).unwrap();
    let mut seen = BTreeSet::new();
    // Every second of these is torn in another way, since another write stands before it.
    for _ in 0..8 {
        file.write_at(&NEW, 0).unwrap();
        for files in outcomes(&disk, "/") {
            let [(_, bytes)] = &files[..] else {
                panic!("{files:?}");
            };
            let sectors = bytes.chunks(512).map(|sector| {
                assert!(
                    sector.iter().all(|byte| *byte == sector[0]),
                    "a torn sector"
                );
                sector[0]
            });
            seen.insert(sectors.collect::<Vec<_>>());
        }
    }
    assert_eq!(seen, [[1, 1], [1, 2], [2, 1], [2, 2]].map(Vec::from).into());
}

#[test]
fn a_file_that_grew_has_either_size_and_what_is_lost_of_it_is_anything() {
    let disk = disk_with_a(&[]);
    let file = disk.files(0).open(Path::new("/a")).unwrap();
    file.write_at(&NEW[..512], 0).unwrap();
    let (mut sizes, mut contents) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..6 {
        file.write_at(&NEW[..512], 0).unwrap();
        for files in outcomes(&disk, "/") {
            sizes.insert(files[0].1.len());
            contents.insert(files[0].1.first().copied());
        }
    }
    assert_eq!(sizes, [0, 512].into());
    assert!(contents.is_superset(&[None, Some(0), Some(2)].into()));
    assert!(
        contents.len() > 3,
        "nothing of what others left on the disk"
    );
}

#[test]
fn a_rename_leaves_the_old_file_or_the_new_one_and_perhaps_its_old_name() {
    let disk = disk_with_a(&OLD);
    let directory = root(&disk);
    create(&*directory, "b", &NEW).sync().unwrap();
    directory.sync().unwrap();
    directory.rename(OsStr::new("b"), OsStr::new("a")).unwrap();
    let expected = [
        listing(&[("a", &OLD), ("b", &NEW)]),
        listing(&[("a", &NEW)]),
        listing(&[("a", &NEW), ("b", &NEW)]),
    ];
    assert_eq!(outcomes(&disk, "/"), expected.into());
}

#[test]
fn operations_on_names_are_lost_independently_of_each_other() {
    let disk = disk_with_a(&OLD);
    let directory = root(&disk);
    directory.link(OsStr::new("a"), OsStr::new("b")).unwrap();
    directory.unlink(OsStr::new("a")).unwrap();
    let expected = [
        listing(&[("a", &OLD)]),
        listing(&[("a", &OLD), ("b", &OLD)]),
        listing(&[("b", &OLD)]),
        listing(&[]),
    ];
    assert_eq!(outcomes(&disk, "/"), expected.into());
}

#[test]
fn a_renamed_file_is_there_even_if_its_creation_was_lost() {
    let disk = SimulatedDisk::new();
    let directory = root(&disk);
    create(&*directory, "b", &NEW).sync().unwrap();
    directory.rename(OsStr::new("b"), OsStr::new("a")).unwrap();
    let expected = [
        listing(&[]),
        listing(&[("b", &NEW)]),
        listing(&[("a", &NEW)]),
        listing(&[("a", &NEW), ("b", &NEW)]),
    ];
    assert_eq!(outcomes(&disk, "/"), expected.into());
}

#[test]
fn a_directory_is_lost_with_all_that_is_in_it_unless_its_parent_was_synced() {
    let disk = SimulatedDisk::new();
    let files = disk.files(0);
    files.create_directory(Path::new("/runs")).unwrap();
    let runs = files.open_directory(Path::new("/runs")).unwrap();
    create(&*runs, "a", &NEW).sync().unwrap();
    runs.sync().unwrap();
    let whole = listing(&[("a", &NEW)]);
    assert_eq!(
        outcomes(&disk, "/runs"),
        [listing(&[]), whole.clone()].into()
    );
    root(&disk).sync().unwrap();
    assert_eq!(outcomes(&disk, "/runs"), [whole].into());
}

/// The next operation of the one process fails.
fn fail_next(disk: &SimulatedDisk) {
    disk.inject(Fault {
        actor: 0,
        operation: disk.count(0),
        errno: EIO,
        reach: Reach::Once,
    });
}

#[test]
fn a_second_fsync_does_not_make_good_what_the_first_has_lost() {
    let disk = disk_with_a(&OLD);
    let file = disk.files(0).open(Path::new("/a")).unwrap();
    file.write_at(&NEW, 0).unwrap();
    fail_next(&disk);
    assert_eq!(file.sync().unwrap_err().raw_os_error(), Some(EIO));
    file.sync().unwrap();
    assert!(outcomes(&disk, "/").contains(&listing(&[("a", &OLD)])));
    file.write_at(&NEW, 0).unwrap();
    file.sync().unwrap();
    assert_eq!(outcomes(&disk, "/"), [listing(&[("a", &NEW)])].into());
}

#[test]
fn a_failed_fsync_of_a_directory_is_told_once_to_everybody_who_has_it_open() {
    let disk = disk_with_a(&OLD);
    let (one, other) = (root(&disk), root(&disk));
    one.unlink(OsStr::new("a")).unwrap();
    fail_next(&disk);
    assert_eq!(one.sync().unwrap_err().raw_os_error(), Some(EIO));
    assert_eq!(other.sync().unwrap_err().raw_os_error(), Some(EIO));
    let expected = [listing(&[]), listing(&[("a", &OLD)])];
    assert_eq!(outcomes(&disk, "/"), expected.into());
    for directory in [one, other, root(&disk)] {
        directory.sync().unwrap();
    }
    assert_eq!(outcomes(&disk, "/"), [listing(&[])].into());
}
