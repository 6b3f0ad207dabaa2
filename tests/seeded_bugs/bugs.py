"""The bugs: what is changed, and which tests have to fail then."""

from __future__ import annotations

from dataclasses import dataclass

from tests.seeded_bugs.tree import CargoTest, PythonTest, Test


@dataclass(frozen=True)
class Bug:
    """One change that must not go unseen.

    Attributes:
        name: What is wrong, as an argument of the command line.
        file: Path in the project.
        old: Text that is in it exactly once.
        new: What stands there instead.
        tests: Each of them has to fail.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[Test, ...]


def _power(name: str) -> CargoTest:
    return CargoTest("fastckpt-core", "power", name)


def _commit(name: str) -> CargoTest:
    return CargoTest("fastckpt-core", "commit", name)


def _ownership(name: str) -> CargoTest:
    return CargoTest("fastckpt-core", "ownership", name)


def _schedule(name: str) -> PythonTest:
    return PythonTest(f"tests/faults/test_deleting_while_saving.py::{name}")


def _hostile(name: str) -> CargoTest:
    return CargoTest("fastckpt-format", "hostile", name)


def _torn_steps(name: str) -> PythonTest:
    return PythonTest(f"tests/test_nanochat_torn_steps.py::{name}")


def _manager(part: str, name: str) -> PythonTest:
    return PythonTest(f"tests/test_manager_{part}.py::{name}")


_POWER_CUTS = _power("a_promised_save_or_a_newer_one_is_whole_after_every_power_cut")
_FAILURES = _power("a_file_whose_saving_fails_anywhere_is_the_old_one_or_the_new_one")
_REPORTED = _commit("every_operation_that_fails_is_reported_and_leaves_the_old_file")
_ORDER = _commit("the_order_is_write_fsync_rename_fsync_of_the_directory")
_STALE = _commit("a_save_removes_the_temporary_files_of_the_dead_and_no_others")

_PUBLISH = "rust/fastckpt-core/src/commit/publish.rs"
_OWN = "rust/fastckpt-core/src/commit/own.rs"
_COMMIT = "rust/fastckpt-core/src/commit/mod.rs"
_KEEP = "rust/fastckpt-core/src/commit/keep.rs"
_TEMP = "rust/fastckpt-core/src/commit/temp.rs"
_INDEX = "rust/fastckpt-format/src/index.rs"
_TRAINING = "python/fastckpt/training"
_HEADERS = "rust/fastckpt-format/src/index/headers.rs"

BUGS = (
    Bug(
        "no-fsync-of-the-file",
        _COMMIT,
        "                sync_file(&new.temp.file, &new.path, nbytes, observer)?;\n",
        "",
        (_POWER_CUTS, _ORDER),
    ),
    Bug(
        "no-fsync-of-the-directory",
        _PUBLISH,
        "            for (destination, path) in touched {\n",
        "            for (destination, path) in touched.into_iter().skip(1) {\n",
        (_POWER_CUTS, _ORDER),
    ),
    Bug(
        "fsync-error-of-the-directory-swallowed",
        _PUBLISH,
        "                    .map_err(|source| Error::CommitUnknown { path, source })?;\n",
        "                    .map_err(|source| Error::CommitUnknown { path, source })\n"
        "                    .ok();\n",
        (_REPORTED, _FAILURES),
    ),
    Bug(
        "fsync-tried-again",
        _COMMIT,
        "move || file.sync())?",
        "move || file.sync().or_else(|_failed| file.sync()))?",
        (_REPORTED, _FAILURES),
    ),
    Bug(
        "short-write-ignored",
        "rust/fastckpt-core/src/files/mod.rs",
        "            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),\n"
        "            Ok(n) => done += n,\n",
        "            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),\n"
        "            Ok(_) => done = bytes.len(),\n",
        (CargoTest("fastckpt-core", "write", "short_and_interrupted_writes_change_nothing"),),
    ),
    Bug(
        "checksum-of-the-source",
        "rust/fastckpt-core/src/memory.rs",
        "            hasher.update(piece);\n",
        "            // SAFETY: as above.\n"
        "            hasher.update(unsafe {\n"
        "                let source = self.address.add(offset + piece_index * PIECE_NBYTES);\n"
        "                std::slice::from_raw_parts(source, piece.len())\n"
        "            });\n",
        (
            PythonTest(
                "tests/faults/test_concurrent_use.py"
                "::test_a_tensor_that_changes_meanwhile_still_verifies"
            ),
        ),
    ),
    Bug(
        "temporary-file-left-after-an-error",
        _TEMP,
        "        if self.has_moved || self.owner != process::id() {\n",
        "        if self.has_moved || self.owner != 0 {\n",
        (_REPORTED, _FAILURES),
    ),
    Bug(
        "temporary-name-removed-whoever-has-it",
        _OWN,
        "    if !leads_to(directory, name, file)? {\n        return Ok(false);\n    }\n",
        "",
        (
            _ownership(
                "a_file_that_was_swept_before_its_lock_takes_no_name_of_another_saver_along"
            ),
            _ownership("what_is_no_longer_its_own_is_neither_published_nor_removed"),
        ),
    ),
    Bug(
        "temporary-name-published-whoever-has-it",
        _TEMP,
        "        if !leads_to(&*self.directory, &self.name, &own)? {\n",
        "        if own.links > 9 {\n",
        (_ownership("what_is_no_longer_its_own_is_neither_published_nor_removed"),),
    ),
    Bug(
        "saver-takes-no-lock",
        "rust/fastckpt-core/src/commit/lock.rs",
        "        for path in directories {\n",
        "        for path in directories.iter().take(0) {\n",
        (_ownership("a_saver_shares_the_lock_and_never_holds_it_when_it_is_done"),),
    ),
    Bug(
        "deleted-without-a-second-look",
        "python/fastckpt/_steps/removal.py",
        "            if problem is not None:\n",
        "            if False:\n",
        (
            _schedule("test_gc_keeps_a_step_that_is_saved_after_it_was_judged"),
            _schedule("test_prune_deletes_nothing_on_account_of_a_checkpoint_that_is_gone_by_then"),
        ),
    ),
    Bug(
        "deleted-without-the-lock",
        "python/fastckpt/_steps/held.py",
        "            yield held is not False\n",
        "            yield True\n",
        (_schedule("test_nothing_is_deleted_where_a_saver_holds_the_lock"),),
    ),
    Bug(
        "copy-replaces",
        "python/fastckpt/_copy/items.py",
        "                replace=False,\n",
        "                replace=True,\n",
        (_schedule("test_a_copy_never_replaces_what_somebody_saves_at_the_destination_meanwhile"),),
    ),
    Bug(
        "temporary-name-ends-in-pt",
        "rust/fastckpt-core/src/stale.rs",
        'const SUFFIX: &str = ".tmp";\n',
        'const SUFFIX: &str = ".tmp.pt";\n',
        (CargoTest("fastckpt-core", "lib", "stale::tests::only_our_own_names_are_ours"),),
    ),
    Bug(
        "stale-files-removed-without-the-lock",
        "rust/fastckpt-core/src/stale.rs",
        "        if file.lock().is_err() {\n",
        "        if false {\n",
        (_STALE, _POWER_CUTS),
    ),
    Bug(
        "kept-names-not-durable",
        _KEEP,
        "            if !self.sync {\n                continue;\n",
        "            if self.sync {\n                continue;\n",
        (_POWER_CUTS,),
    ),
    Bug(
        "kept-files-discarded-before-the-others-are-durable",
        _KEEP,
        "        let opened = self.directory(directory)?;\n        if self.sync {\n",
        "        let opened = self.directory(directory)?;\n        if !self.sync {\n",
        (_power("a_rank_that_looks_around_while_another_renames_removes_nothing_that_is_needed"),),
    ),
    Bug(
        "replaced-files-not-kept",
        "python/fastckpt/nanochat/steps.py",
        "        keep_replaced(commit, directory, step, names, files.mark.save_id)\n",
        "",
        (_torn_steps("test_the_old_save_is_loaded_until_the_new_one_is_whole"),),
    ),
    Bug(
        "kept-files-discarded-before-the-step-is-whole",
        "python/fastckpt/nanochat/replacing.py",
        "        return superseded_names(directory, files)\n",
        "        return files.kept_names()\n",
        (_torn_steps("test_the_old_save_is_loaded_until_the_new_one_is_whole"),),
    ),
    Bug(
        "model-renamed-first",
        "python/fastckpt/nanochat/steps.py",
        "        _publish(commit, first, logged)\n        _publish(commit, last, logged)\n",
        "        _publish(commit, last, logged)\n        _publish(commit, first, logged)\n",
        (
            PythonTest(
                "tests/test_nanochat_save.py::test_log_says_each_file_in_the_order_of_commit"
            ),
        ),
    ),
    Bug(
        "save-ids-not-compared",
        "python/fastckpt/_steps/opened.py",
        "        if name is not None and self._save_id(name) == save_id:\n",
        "        if name is not None:\n",
        (_torn_steps("test_the_old_save_is_loaded_until_the_new_one_is_whole"),),
    ),
    Bug(
        "overlap-of-records-not-checked",
        _INDEX,
        "        check_overlap(&entries, &flags, directory.start)?;\n",
        "",
        (_hostile("entries::overlapping_records"), _hostile("entries::record_inside_a_record")),
    ),
    Bug(
        "offset-and-size-of-a-record-not-checked",
        "rust/fastckpt-format/src/index/directory.rs",
        "    check_bounds(&record, full_name.len(), directory_offset)?;\n",
        "",
        (_hostile("entries::sizes_and_offsets_past_the_end"),),
    ),
    Bug(
        "local-header-not-compared",
        _HEADERS,
        "    check_sizes(entry, &header, extra)\n}\n",
        "    let _ = extra;\n    Ok(())\n}\n",
        (_hostile("entries::local_headers_that_contradict"),),
    ),
    Bug(
        "checksum-not-compared",
        "rust/fastckpt-core/src/read/inspect.rs",
        "        } else if crc32 != expected {\n",
        "        } else if crc32 != expected && part.is_empty() {\n",
        (
            CargoTest("fastckpt-core", "verify", "every_flipped_bit_is_found"),
            PythonTest("tests/faults/test_every_bit.py::test_every_bit_of_a_small_file_of_torch"),
        ),
    ),
    Bug(
        "items-set-on-anything",
        "rust/fastckpt-format/src/pickle/decode.rs",
        "            other => {\n"
        "                return Err(PickleError::SetItemTarget {\n"
        "                    offset,\n"
        "                    opcode,\n"
        '                    found: other.map_or("nothing", |node| node.kind()),\n'
        "                });\n"
        "            }\n",
        "            _other => {}\n",
        (CargoTest("fastckpt-format", "pickle", "refusals::each_has_its_message"),),
    ),
    Bug(
        "best-checkpoint-deleted",
        f"{_TRAINING}/manager.py",
        "        protected = {newest} if best is None or is_best else {newest, best.name}\n",
        "        protected = {newest}\n",
        (_manager("rotation", "test_the_newest_by_step_and_the_best_stay"),),
    ),
    Bug(
        "checkpoint-not-read-back",
        f"{_TRAINING}/writing.py",
        "        if proves:\n",
        "        if False:\n",
        (_manager("proof", "test_what_the_disk_does_not_return_is_not_published"),),
    ),
    Bug(
        "nan-is-the-best",
        f"{_TRAINING}/metrics.py",
        "    if value is None or math.isnan(value):\n",
        "    if value is None:\n",
        (_manager("best_model", "test_nan_is_never_the_best"),),
    ),
    Bug(
        "disk-error-taken-for-damage",
        f"{_TRAINING}/newest.py",
        "        except (CheckpointError, FileNotFoundError) as error:\n",
        "        except (CheckpointError, OSError) as error:\n",
        (_manager("load", "test_an_error_of_the_disk_is_raised_and_not_got_around"),),
    ),
    Bug(
        "scheduler-not-restored",
        f"{_TRAINING}/restoring.py",
        '        report.restore("scheduler", parts.scheduler, scheduler_state)\n',
        "        pass\n",
        (PythonTest("tests/test_resume.py::test_a_resumed_run_is_the_same_bit_for_bit"),),
    ),
)
