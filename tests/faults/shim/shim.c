/* Counts the file operations that a process asks its C library for, and spoils one of them.
 *
 * Preloaded, it stands between a program and libc. Rust's standard library and Python both go
 * through libc, so the very binaries that users run are seen. Only operations on files at or below
 * one directory count, in all threads. Unarmed, everything is passed on.
 *
 * What to do, how far it got and a log lie in one struct `control` (its mirror is in shim.py), which
 * may be in memory that a parent shares: it can then be read after the process was killed.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

/* The names are what tests and their messages say. */
#define KINDS(X)                                                                                   \
    X(OPEN, "open")                                                                                \
    X(OPEN_DIRECTORY, "open directory")                                                            \
    X(CREATE, "create")                                                                            \
    X(READ, "read")                                                                                \
    X(READ_CACHED, "cached read")                                                                  \
    X(WRITE, "write")                                                                              \
    X(SYNC, "fsync")                                                                               \
    X(SYNC_DIRECTORY, "fsync of a directory")                                                      \
    X(TRUNCATE, "truncate")                                                                        \
    X(ALLOCATE, "allocate")                                                                        \
    X(RENAME, "rename")                                                                            \
    X(LINK, "link")                                                                                \
    X(UNLINK, "unlink")                                                                            \
    X(MAKE_DIRECTORY, "mkdir")                                                                     \
    X(REMOVE_DIRECTORY, "rmdir")                                                                   \
    X(LOCK, "flock")                                                                               \
    X(STAT, "stat")                                                                                \
    X(STAT_FILE_SYSTEM, "statfs")                                                                  \
    X(READ_LINK, "readlink")                                                                       \
    X(MAP, "mmap")                                                                                 \
    X(CLOSE, "close")                                                                              \
    X(LIST, "opendir")                                                                             \
    X(LIST_NEXT, "readdir")                                                                        \
    X(LIST_END, "closedir")                                                                        \
    X(CHANGE_MODE, "chmod")                                                                        \
    X(CHANGE_OWNER, "chown")                                                                       \
    X(SET_FLAGS, "fcntl")                                                                          \
    X(GET_ATTRIBUTE, "getxattr")                                                                   \
    X(SET_ATTRIBUTE, "setxattr")

enum kind {
#define X(name, text) name,
    KINDS(X)
#undef X
        KIND_COUNT
};

static const char *const kind_names[] = {
#define X(name, text) text,
    KINDS(X)
#undef X
};

enum action { PASS, KILL_BEFORE, KILL_AFTER, FAIL, HALVE, DISTURB, INTERRUPT };

enum { LOG_LENGTH = 8192, NAME_LENGTH = 64, PATH_LENGTH = 4096, EVERY_THIRD = 3 };

struct entry {
    int32_t kind;
    int32_t fd; /* -1: the operation names a path */
    int32_t result; /* -1: failed; 0: succeeded; 1: never came back */
    int32_t error; /* errno */
    int32_t was_injected;
    char name[NAME_LENGTH]; /* below the directory; "." is the directory itself */
};

struct control {
    _Atomic int32_t armed;
    int32_t action;
    int32_t error; /* errno of FAIL */
    int32_t for_ever; /* FAIL: from operation `at` on, not only that one */
    int64_t at; /* operation to spoil, from 1 */
    uint64_t interruptible; /* DISTURB, INTERRUPT: a bit for each kind that may give EINTR */
    _Atomic int64_t counted;
    _Atomic int64_t logged;
    char directory[PATH_LENGTH];
    struct entry log[LOG_LENGTH];
};

static struct control own;
static struct control *control = &own;

struct call {
    struct entry *entry; /* NULL: nobody watches */
    int is_watched;
    int dies_after;
    int is_halved;
    int is_refused;
};

/* ---- what Python calls ---- */

void shim_use(struct control *shared)
{
    control = shared;
}

size_t shim_control_size(void)
{
    return sizeof(struct control);
}

const char *shim_kind_name(int kind)
{
    return kind >= 0 && kind < KIND_COUNT ? kind_names[kind] : NULL;
}

/* ---- where a call goes ---- */

/* Where a descriptor leads, by a raw system call: libc's function is one of those below. */
static int path_of_link(const char *link, char *path)
{
    long length = syscall(SYS_readlink, link, path, PATH_LENGTH - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return 1;
}

static int path_of_fd(int fd, char *path)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    return path_of_link(link, path);
}

static int path_at(int directory_fd, const char *name, char *path)
{
    if (!name) return 0;
    if (strncmp(name, "/proc/self/fd/", 14) == 0) return path_of_link(name, path);
    path[0] = 0;
    if (name[0] != '/') {
        int known = directory_fd == AT_FDCWD ? path_of_link("/proc/self/cwd", path)
                                             : path_of_fd(directory_fd, path);
        if (!known) return 0;
        if (name[0] == 0) return 1; /* AT_EMPTY_PATH: the descriptor itself */
        if (strcmp(name, ".") == 0) return 1;
        strncat(path, "/", PATH_LENGTH - 1 - strlen(path));
    }
    strncat(path, name, PATH_LENGTH - 1 - strlen(path));
    return 1;
}

/* The part of a path below the watched directory; NULL: it is elsewhere. */
static const char *below(const char *path)
{
    size_t length = strlen(control->directory);
    if (length == 0 || strncmp(path, control->directory, length) != 0) return NULL;
    if (path[length] == 0) return ".";
    return path[length] == '/' ? path + length + 1 : NULL;
}

/* ---- before and after a call ---- */

static void die(void)
{
    syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
    for (;;) syscall(SYS_pause);
}

static void refuse(struct call *call, int error)
{
    call->is_refused = 1;
    if (call->entry) {
        call->entry->result = -1;
        call->entry->error = error;
        call->entry->was_injected = 1;
    }
    errno = error;
}

static struct entry *note(int kind, int fd, const char *name)
{
    int64_t position = atomic_fetch_add(&control->logged, 1);
    if (position >= LOG_LENGTH) return NULL;
    struct entry *entry = &control->log[position];
    entry->kind = kind;
    entry->fd = fd;
    entry->result = 1;
    entry->error = 0;
    entry->was_injected = 0;
    strncpy(entry->name, name, NAME_LENGTH - 1);
    entry->name[NAME_LENGTH - 1] = 0;
    return entry;
}

static void spoil(struct call *call, int kind, int64_t number)
{
    int is_it = number == control->at;
    switch (control->action) {
    case KILL_BEFORE:
        if (is_it) die();
        break;
    case KILL_AFTER:
        call->dies_after = is_it;
        break;
    case FAIL:
        if (is_it || (control->for_ever && number > control->at)) refuse(call, control->error);
        break;
    case HALVE:
        call->is_halved = is_it;
        break;
    case DISTURB:
        if (number % EVERY_THIRD == 0 && (control->interruptible >> kind & 1)) refuse(call, EINTR);
        call->is_halved = 1;
        break;
    case INTERRUPT:
        if (control->interruptible >> kind & 1) refuse(call, EINTR);
        break;
    default:
        break;
    }
}

static struct call begin(int kind, int fd, const char *path)
{
    struct call call = {0};
    const char *name = below(path);
    if (!name) return call;
    call.is_watched = 1;
    call.entry = note(kind, fd, name);
    spoil(&call, kind, atomic_fetch_add(&control->counted, 1) + 1);
    return call;
}

static int is_armed(void)
{
    return atomic_load_explicit(&control->armed, memory_order_acquire);
}

static struct call on_fd(int kind, int fd)
{
    struct call call = {0};
    char path[PATH_LENGTH];
    int error = errno;
    if (!is_armed() || !path_of_fd(fd, path)) {
        errno = error;
        return call;
    }
    errno = error;
    return begin(kind, fd, path);
}

static struct call on_path(int kind, int directory_fd, const char *name)
{
    struct call call = {0};
    char path[PATH_LENGTH];
    int error = errno;
    if (!is_armed() || !path_at(directory_fd, name, path)) {
        errno = error;
        return call;
    }
    errno = error;
    return begin(kind, -1, path);
}

/* Two names: the call counts where either is below the directory, under the new one. */
static struct call on_paths(int kind, int from_fd, const char *from, int to_fd, const char *to)
{
    char path[PATH_LENGTH];
    if (is_armed() && path_at(to_fd, to, path) && below(path)) return on_path(kind, to_fd, to);
    return on_path(kind, from_fd, from);
}

static void end(struct call *call, int has_failed)
{
    if (!call->is_watched) return;
    if (call->entry) {
        call->entry->result = has_failed ? -1 : 0;
        call->entry->error = has_failed ? errno : 0;
    }
    if (call->dies_after) die();
}

/* An open logs the descriptor that came back, so that later entries can be told apart by it. */
static void end_open(struct call *call, int fd)
{
    if (call->entry) call->entry->fd = fd;
    end(call, fd < 0);
}

static void *find(void **place, const char *name)
{
    if (!*place) *place = dlsym(RTLD_NEXT, name);
    return *place;
}

/* The function that would have been called without us. */
#define REAL(type, name)                                                                           \
    static void *place;                                                                            \
    __typeof__(type) real = (__typeof__(type))find(&place, #name)

/* ---- opening ---- */

static int kind_of_open(int flags)
{
    if (flags & O_CREAT) return CREATE;
    return (flags & O_DIRECTORY) == O_DIRECTORY ? OPEN_DIRECTORY : OPEN;
}

#define MODE_ARGUMENT(last)                                                                        \
    mode_t mode = 0;                                                                               \
    if (last & (O_CREAT | __O_TMPFILE)) {                                                          \
        va_list arguments;                                                                         \
        va_start(arguments, last);                                                                 \
        mode = va_arg(arguments, mode_t);                                                          \
        va_end(arguments);                                                                         \
    }

#define OPEN_FUNCTION(name)                                                                        \
    int name(const char *path, int flags, ...)                                                     \
    {                                                                                              \
        MODE_ARGUMENT(flags)                                                                       \
        REAL(int (*)(const char *, int, ...), name);                                               \
        struct call call = on_path(kind_of_open(flags), AT_FDCWD, path);                           \
        if (call.is_refused) return -1;                                                            \
        int fd = real(path, flags, mode);                                                          \
        end_open(&call, fd);                                                                       \
        return fd;                                                                                 \
    }

#define OPENAT_FUNCTION(name)                                                                      \
    int name(int directory, const char *path, int flags, ...)                                      \
    {                                                                                              \
        MODE_ARGUMENT(flags)                                                                       \
        REAL(int (*)(int, const char *, int, ...), name);                                          \
        struct call call = on_path(kind_of_open(flags), directory, path);                          \
        if (call.is_refused) return -1;                                                            \
        int fd = real(directory, path, flags, mode);                                               \
        end_open(&call, fd);                                                                       \
        return fd;                                                                                 \
    }

OPEN_FUNCTION(open)
OPEN_FUNCTION(open64)
OPENAT_FUNCTION(openat)
OPENAT_FUNCTION(openat64)

int creat(const char *path, mode_t mode)
{
    return open(path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

int creat64(const char *path, mode_t mode)
{
    return open(path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

/* Linux has let go of the descriptor even where close reports an error: so do we. */
int close(int fd)
{
    REAL(int (*)(int), close);
    struct call call = on_fd(CLOSE, fd);
    int error = errno;
    int result = real(fd);
    if (call.is_refused) {
        errno = error;
        return -1;
    }
    end(&call, result < 0);
    return result;
}

/* ---- reading and writing ---- */

static size_t half(size_t nbytes)
{
    return nbytes > 1 ? nbytes / 2 : nbytes;
}

/* Half of a transfer need not end where a block does. Direct I/O would refuse it, though a file
 * system may well come back with such a number: so it goes through a descriptor of its own. */
static int reopen_without_direct(int fd)
{
    char link[64];
    long flags = syscall(SYS_fcntl, fd, F_GETFL);
    if (flags < 0 || !(flags & O_DIRECT)) return -1;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    return (int)syscall(SYS_open, link, (flags & O_ACCMODE) | O_CLOEXEC);
}

#define TRANSFER(kind, fd, nbytes, perform)                                                        \
    struct call call = on_fd(kind, fd);                                                            \
    if (call.is_refused) return -1;                                                                \
    int other = call.is_halved ? reopen_without_direct(fd) : -1;                                   \
    if (other >= 0) fd = other;                                                                    \
    if (call.is_halved) nbytes = half(nbytes);                                                     \
    ssize_t done = perform;                                                                        \
    int error = errno;                                                                             \
    if (other >= 0) syscall(SYS_close, other);                                                     \
    errno = error;                                                                                 \
    end(&call, done < 0);                                                                          \
    return done;

#define PLAIN_FUNCTION(name, kind, pointer)                                                        \
    ssize_t name(int fd, pointer bytes, size_t nbytes)                                             \
    {                                                                                              \
        REAL(ssize_t (*)(int, pointer, size_t), name);                                             \
        struct call call = on_fd(kind, fd);                                                        \
        if (call.is_refused) return -1;                                                            \
        ssize_t done = real(fd, bytes, call.is_halved ? half(nbytes) : nbytes);                    \
        end(&call, done < 0);                                                                      \
        return done;                                                                               \
    }

#define POSITIONED_FUNCTION(name, kind, pointer)                                                   \
    ssize_t name(int fd, pointer bytes, size_t nbytes, off_t offset)                               \
    {                                                                                              \
        REAL(ssize_t (*)(int, pointer, size_t, off_t), name);                                      \
        TRANSFER(kind, fd, nbytes, real(fd, bytes, nbytes, offset))                                \
    }

PLAIN_FUNCTION(read, READ, void *)
PLAIN_FUNCTION(write, WRITE, const void *)
POSITIONED_FUNCTION(pread, READ, void *)
POSITIONED_FUNCTION(pread64, READ, void *)
POSITIONED_FUNCTION(pwrite, WRITE, const void *)
POSITIONED_FUNCTION(pwrite64, WRITE, const void *)

/* Several buffers: half of a transfer is half of the first of them. */
#define VECTOR_FUNCTION(name, kind)                                                                \
    ssize_t name(int fd, const struct iovec *parts, int count)                                     \
    {                                                                                              \
        REAL(ssize_t (*)(int, const struct iovec *, int), name);                                   \
        struct call call = on_fd(kind, fd);                                                        \
        if (call.is_refused) return -1;                                                            \
        struct iovec first = count > 0 ? parts[0] : (struct iovec){0};                             \
        first.iov_len = half(first.iov_len);                                                       \
        int is_cut = call.is_halved && first.iov_len > 0;                                          \
        ssize_t done = is_cut ? real(fd, &first, 1) : real(fd, parts, count);                      \
        end(&call, done < 0);                                                                      \
        return done;                                                                               \
    }

#define VECTOR_FLAGS_FUNCTION(name, kind)                                                          \
    ssize_t name(int fd, const struct iovec *parts, int count, off_t offset, int flags)            \
    {                                                                                              \
        REAL(ssize_t (*)(int, const struct iovec *, int, off_t, int), name);                       \
        struct call call = on_fd(kind, fd);                                                        \
        if (call.is_refused) return -1;                                                            \
        struct iovec first = count > 0 ? parts[0] : (struct iovec){0};                             \
        first.iov_len = half(first.iov_len);                                                       \
        int is_cut = call.is_halved && first.iov_len > 0;                                          \
        ssize_t done =                                                                             \
            is_cut ? real(fd, &first, 1, offset, flags) : real(fd, parts, count, offset, flags);   \
        end(&call, done < 0);                                                                      \
        return done;                                                                               \
    }

#define KIND_OF_READ (flags & RWF_NOWAIT ? READ_CACHED : READ)

VECTOR_FUNCTION(readv, READ)
VECTOR_FUNCTION(writev, WRITE)
VECTOR_FLAGS_FUNCTION(preadv2, KIND_OF_READ)
VECTOR_FLAGS_FUNCTION(preadv64v2, KIND_OF_READ)
VECTOR_FLAGS_FUNCTION(pwritev2, WRITE)
VECTOR_FLAGS_FUNCTION(pwritev64v2, WRITE)

void *mmap64(void *address, size_t nbytes, int protection, int flags, int fd, off_t offset)
{
    REAL(void *(*)(void *, size_t, int, int, int, off_t), mmap64);
    struct call call = {0};
    if (fd >= 0 && !(flags & MAP_ANONYMOUS)) call = on_fd(MAP, fd);
    if (call.is_refused) return MAP_FAILED;
    void *memory = real(address, nbytes, protection, flags, fd, offset);
    end(&call, memory == MAP_FAILED);
    return memory;
}

void *mmap(void *address, size_t nbytes, int protection, int flags, int fd, off_t offset)
{
    return mmap64(address, nbytes, protection, flags, fd, offset);
}

/* ---- everything that returns 0 or -1 ---- */

#define SIMPLE(name, parameters, types, arguments, begun)                                          \
    int name parameters                                                                            \
    {                                                                                              \
        REAL(int(*) types, name);                                                                  \
        struct call call = begun;                                                                  \
        if (call.is_refused) return -1;                                                            \
        int result = real arguments;                                                               \
        end(&call, result != 0);                                                                   \
        return result;                                                                             \
    }

static struct call on_sync(int fd)
{
    struct stat status;
    int error = errno;
    int is_directory = syscall(SYS_fstat, fd, &status) == 0 && S_ISDIR(status.st_mode);
    errno = error;
    return on_fd(is_directory ? SYNC_DIRECTORY : SYNC, fd);
}

SIMPLE(fsync, (int fd), (int), (fd), on_sync(fd))
SIMPLE(fdatasync, (int fd), (int), (fd), on_sync(fd))
SIMPLE(ftruncate, (int fd, off_t n), (int, off_t), (fd, n), on_fd(TRUNCATE, fd))
SIMPLE(ftruncate64, (int fd, off_t n), (int, off_t), (fd, n), on_fd(TRUNCATE, fd))
SIMPLE(fallocate, (int fd, int mode, off_t from, off_t n), (int, int, off_t, off_t),
       (fd, mode, from, n), on_fd(ALLOCATE, fd))
SIMPLE(fallocate64, (int fd, int mode, off_t from, off_t n), (int, int, off_t, off_t),
       (fd, mode, from, n), on_fd(ALLOCATE, fd))
SIMPLE(flock, (int fd, int how), (int, int), (fd, how), on_fd(LOCK, fd))
SIMPLE(fchmod, (int fd, mode_t mode), (int, mode_t), (fd, mode), on_fd(CHANGE_MODE, fd))
SIMPLE(chmod, (const char *path, mode_t mode), (const char *, mode_t), (path, mode),
       on_path(CHANGE_MODE, AT_FDCWD, path))
SIMPLE(fchown, (int fd, uid_t user, gid_t group), (int, uid_t, gid_t), (fd, user, group),
       on_fd(CHANGE_OWNER, fd))

SIMPLE(fsetxattr, (int fd, const char *name, const void *value, size_t n, int flags),
       (int, const char *, const void *, size_t, int), (fd, name, value, n, flags),
       on_fd(SET_ATTRIBUTE, fd))
SIMPLE(fremovexattr, (int fd, const char *name), (int, const char *), (fd, name),
       on_fd(SET_ATTRIBUTE, fd))

SIMPLE(rename, (const char *from, const char *to), (const char *, const char *), (from, to),
       on_paths(RENAME, AT_FDCWD, from, AT_FDCWD, to))
SIMPLE(renameat, (int a, const char *from, int b, const char *to),
       (int, const char *, int, const char *), (a, from, b, to), on_paths(RENAME, a, from, b, to))
SIMPLE(renameat2, (int a, const char *from, int b, const char *to, unsigned flags),
       (int, const char *, int, const char *, unsigned), (a, from, b, to, flags),
       on_paths(RENAME, a, from, b, to))
SIMPLE(link, (const char *from, const char *to), (const char *, const char *), (from, to),
       on_paths(LINK, AT_FDCWD, from, AT_FDCWD, to))
SIMPLE(linkat, (int a, const char *from, int b, const char *to, int flags),
       (int, const char *, int, const char *, int), (a, from, b, to, flags),
       on_paths(LINK, a, from, b, to))
SIMPLE(unlink, (const char *path), (const char *), (path), on_path(UNLINK, AT_FDCWD, path))
SIMPLE(unlinkat, (int directory, const char *path, int flags), (int, const char *, int),
       (directory, path, flags),
       on_path(flags & AT_REMOVEDIR ? REMOVE_DIRECTORY : UNLINK, directory, path))
SIMPLE(rmdir, (const char *path), (const char *), (path),
       on_path(REMOVE_DIRECTORY, AT_FDCWD, path))
SIMPLE(mkdir, (const char *path, mode_t mode), (const char *, mode_t), (path, mode),
       on_path(MAKE_DIRECTORY, AT_FDCWD, path))
SIMPLE(mkdirat, (int directory, const char *path, mode_t mode), (int, const char *, mode_t),
       (directory, path, mode), on_path(MAKE_DIRECTORY, directory, path))

#define STAT_FUNCTIONS(suffix)                                                                     \
    SIMPLE(stat##suffix, (const char *path, struct stat##suffix *into),                            \
           (const char *, struct stat##suffix *), (path, into), on_path(STAT, AT_FDCWD, path))     \
    SIMPLE(lstat##suffix, (const char *path, struct stat##suffix *into),                           \
           (const char *, struct stat##suffix *), (path, into), on_path(STAT, AT_FDCWD, path))     \
    SIMPLE(fstat##suffix, (int fd, struct stat##suffix *into), (int, struct stat##suffix *),       \
           (fd, into), on_fd(STAT, fd))                                                            \
    SIMPLE(fstatat##suffix, (int directory, const char *path, struct stat##suffix *into, int how), \
           (int, const char *, struct stat##suffix *, int), (directory, path, into, how),          \
           on_path(STAT, directory, path))                                                         \
    /* What programs call that were linked against a C library before 2.33. */                     \
    SIMPLE(__xstat##suffix, (int version, const char *path, struct stat##suffix *into),            \
           (int, const char *, struct stat##suffix *), (version, path, into),                      \
           on_path(STAT, AT_FDCWD, path))                                                          \
    SIMPLE(__lxstat##suffix, (int version, const char *path, struct stat##suffix *into),           \
           (int, const char *, struct stat##suffix *), (version, path, into),                      \
           on_path(STAT, AT_FDCWD, path))                                                          \
    SIMPLE(__fxstat##suffix, (int version, int fd, struct stat##suffix *into),                     \
           (int, int, struct stat##suffix *), (version, fd, into), on_fd(STAT, fd))                \
    SIMPLE(statfs##suffix, (const char *path, struct statfs##suffix *into),                        \
           (const char *, struct statfs##suffix *), (path, into),                                  \
           on_path(STAT_FILE_SYSTEM, AT_FDCWD, path))                                              \
    SIMPLE(fstatfs##suffix, (int fd, struct statfs##suffix *into), (int, struct statfs##suffix *), \
           (fd, into), on_fd(STAT_FILE_SYSTEM, fd))                                                \
    SIMPLE(statvfs##suffix, (const char *path, struct statvfs##suffix *into),                      \
           (const char *, struct statvfs##suffix *), (path, into),                                 \
           on_path(STAT_FILE_SYSTEM, AT_FDCWD, path))                                              \
    SIMPLE(fstatvfs##suffix, (int fd, struct statvfs##suffix *into),                               \
           (int, struct statvfs##suffix *), (fd, into), on_fd(STAT_FILE_SYSTEM, fd))

STAT_FUNCTIONS()
STAT_FUNCTIONS(64)

SIMPLE(statx, (int directory, const char *restrict path, int flags, unsigned mask,
               struct statx *restrict into),
       (int, const char *, int, unsigned, struct statx *), (directory, path, flags, mask, into),
       on_path(STAT, directory, path))
SIMPLE(access, (const char *path, int mode), (const char *, int), (path, mode),
       on_path(STAT, AT_FDCWD, path))
SIMPLE(faccessat, (int directory, const char *path, int mode, int flags),
       (int, const char *, int, int), (directory, path, mode, flags),
       on_path(STAT, directory, path))

/* ---- the rest ---- */

#define LENGTH_FUNCTION(name, parameters, types, arguments, begun)                                 \
    ssize_t name parameters                                                                        \
    {                                                                                              \
        REAL(ssize_t(*) types, name);                                                              \
        struct call call = begun;                                                                  \
        if (call.is_refused) return -1;                                                            \
        ssize_t length = real arguments;                                                           \
        end(&call, length < 0);                                                                    \
        return length;                                                                             \
    }

LENGTH_FUNCTION(readlink, (const char *path, char *into, size_t n), (const char *, char *, size_t),
                (path, into, n), on_path(READ_LINK, AT_FDCWD, path))
LENGTH_FUNCTION(readlinkat, (int directory, const char *path, char *into, size_t n),
                (int, const char *, char *, size_t), (directory, path, into, n),
                on_path(READ_LINK, directory, path))
LENGTH_FUNCTION(lgetxattr, (const char *path, const char *name, void *into, size_t n),
                (const char *, const char *, void *, size_t), (path, name, into, n),
                on_path(GET_ATTRIBUTE, AT_FDCWD, path))
LENGTH_FUNCTION(fgetxattr, (int fd, const char *name, void *into, size_t n),
                (int, const char *, void *, size_t), (fd, name, into, n), on_fd(GET_ATTRIBUTE, fd))

/* One call to the kernel brings all the names of a small directory. So the first of a listing's calls
 * is an operation that can fail, and the others are not. */
static _Thread_local DIR *just_opened;

DIR *opendir(const char *path)
{
    REAL(DIR * (*)(const char *), opendir);
    struct call call = on_path(LIST, AT_FDCWD, path);
    if (call.is_refused) return NULL;
    just_opened = real(path);
    end(&call, !just_opened);
    return just_opened;
}

/* No operation on a file: the descriptor is open already. */
DIR *fdopendir(int fd)
{
    REAL(DIR * (*)(int), fdopendir);
    just_opened = real(fd);
    return just_opened;
}

/* NULL without an error is the end. */
#define READDIR_FUNCTION(name, type)                                                               \
    struct type *name(DIR *directory)                                                              \
    {                                                                                              \
        REAL(struct type * (*)(DIR *), name);                                                      \
        struct call call = {0};                                                                    \
        if (directory == just_opened) call = on_fd(LIST_NEXT, dirfd(directory));                   \
        just_opened = NULL;                                                                        \
        if (call.is_refused) return NULL;                                                          \
        struct type *next = real(directory);                                                       \
        end(&call, 0);                                                                             \
        return next;                                                                               \
    }

READDIR_FUNCTION(readdir, dirent)
READDIR_FUNCTION(readdir64, dirent64)

int closedir(DIR *directory)
{
    REAL(int (*)(DIR *), closedir);
    struct call call = on_fd(LIST_END, dirfd(directory));
    int error = errno;
    int result = real(directory);
    if (call.is_refused) {
        errno = error;
        return -1;
    }
    end(&call, result != 0);
    return result;
}

/* Of the many things that fcntl does, only the switching of flags is an operation on a file. */
#define FCNTL_FUNCTION(name)                                                                       \
    int name(int fd, int command, ...)                                                             \
    {                                                                                              \
        va_list arguments;                                                                         \
        va_start(arguments, command);                                                              \
        void *argument = va_arg(arguments, void *);                                                \
        va_end(arguments);                                                                         \
        REAL(int (*)(int, int, ...), name);                                                        \
        struct call call = {0};                                                                    \
        if (command == F_SETFL) call = on_fd(SET_FLAGS, fd);                                       \
        if (call.is_refused) return -1;                                                            \
        int result = real(fd, command, argument);                                                  \
        end(&call, result < 0);                                                                    \
        return result;                                                                             \
    }

FCNTL_FUNCTION(fcntl)
FCNTL_FUNCTION(fcntl64)
