"""An NFS v3 client for a program that has none: it takes one request a line from its standard input, does it with
libnfs, and answers with one line. A request and an answer are JSON objects; a member "bytes" says how many bytes
follow the line.

  {"op": "stat", "path": "/a"}                           -> {"size": 1, ...}
  {"op": "read", "path": "/a", "offset": 0, "count": 9}  -> {"bytes": 1}, and a byte
  {"op": "write", "path": "/a", "offset": 0, "bytes": 1} and a byte -> {}
  what failed                                            -> {"errno": 2, "error": "what libnfs says"}

Requests are done one after the other. Whoever started this program bounds their time, and kills it when they hang.
"""
import ctypes
import errno
import json
import sys

O_RDONLY, O_RDWR, O_EXCL, O_SYNC = 0, 2, 0o200, 0o4010000


class Stat(ctypes.Structure):
    """struct nfs_stat_64"""
    _fields_ = [(name, ctypes.c_uint64) for name in (
        "dev", "ino", "mode", "nlink", "uid", "gid", "rdev", "size", "blksize", "blocks", "atime", "mtime", "ctime",
        "atime_nsec", "mtime_nsec", "ctime_nsec", "used")]


class Dirent(ctypes.Structure):
    """The beginning of struct nfsdirent."""


Dirent._fields_ = [("next", ctypes.POINTER(Dirent)), ("name", ctypes.c_char_p), ("inode", ctypes.c_uint64)]


def load():
    # Until libnfs 6, which has another name, the order of arguments of pread and pwrite is offset, count, buffer.
    for name in ("libnfs.so.13", "libnfs.so.14"):
        try:
            lib = ctypes.CDLL(name)
            break
        except OSError as e:
            problem = e
    else:
        raise problem
    handle, u64, out = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p
    lib.nfs_init_context.restype = handle
    lib.nfs_get_error.restype = ctypes.c_char_p
    lib.nfs_get_error.argtypes = [handle]
    lib.libnfs_authunix_create.restype = handle
    lib.libnfs_authunix_create.argtypes = [ctypes.c_char_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint32, out]
    lib.nfs_readdir.restype = ctypes.POINTER(Dirent)
    text = ctypes.c_char_p
    for name, *args in (
            ("set_auth", handle), ("set_timeout", ctypes.c_int), ("set_autoreconnect", ctypes.c_int),
            ("set_version", ctypes.c_int), ("set_dircache", ctypes.c_int),
            ("mount", text, text), ("stat64", text, out),
            ("opendir", text, out), ("readdir", handle), ("closedir", handle),
            ("open", text, ctypes.c_int, out), ("create", text, ctypes.c_int, ctypes.c_int, out), ("close", handle),
            ("pread", handle, u64, u64, out), ("pwrite", handle, u64, u64, text),
            ("rename", text, text), ("unlink", text), ("rmdir", text),
            ("truncate", text, u64), ("statvfs64", text, out), ("access2", text),
            ("parse_url_dir", text), ("destroy_url",)):
        getattr(lib, "nfs_" + name).argtypes = [handle] + list(args)
    lib.nfs_parse_url_dir.restype = ctypes.c_void_p
    return lib


lib = load()


class Failure(Exception):
    def __init__(self, number, text):
        super().__init__(text)
        self.number = number


class Mount:
    """One mounted export, seen with one set of credentials."""

    def __init__(self, server, path, url, uid, gid, groups):
        self.nfs = lib.nfs_init_context()
        ids = (ctypes.c_uint32 * max(1, len(groups)))(*groups)
        lib.nfs_set_auth(self.nfs, lib.libnfs_authunix_create(b"host", uid, gid, len(groups), ids))
        if url:  # the only way to tell ports
            parsed = lib.nfs_parse_url_dir(self.nfs, url.encode())
            if not parsed:
                self.check(-errno.EINVAL)
            lib.nfs_destroy_url(parsed)
        lib.nfs_set_version(self.nfs, 3)
        lib.nfs_set_timeout(self.nfs, -1)
        lib.nfs_set_autoreconnect(self.nfs, -1)
        lib.nfs_set_dircache(self.nfs, 0)
        self.check(lib.nfs_mount(self.nfs, server.encode(), path.encode()))

    def check(self, result):
        if result < 0:
            text = (lib.nfs_get_error(self.nfs) or b"").decode(errors="replace")
            # libnfs has no number for the answer that means "ask again later".
            raise Failure(errno.EAGAIN if "JUKEBOX" in text else -result, text)
        return result

    def opened(self, path, flags):
        f = ctypes.c_void_p()
        self.check(lib.nfs_open(self.nfs, path.encode(), flags, ctypes.byref(f)))
        return f

    def close(self, f):
        self.check(lib.nfs_close(self.nfs, f))

    # The operations, by the names that requests use.

    def op_stat(self, path):
        s = Stat()
        self.check(lib.nfs_stat64(self.nfs, path.encode(), ctypes.byref(s)))
        return {name: getattr(s, name) for name, _ in Stat._fields_}

    def op_readdir(self, path):
        d = ctypes.c_void_p()
        self.check(lib.nfs_opendir(self.nfs, path.encode(), ctypes.byref(d)))
        names = []
        while True:
            e = lib.nfs_readdir(self.nfs, d)
            if not e:
                break
            names.append(e.contents.name.decode(errors="surrogateescape"))
        lib.nfs_closedir(self.nfs, d)
        return {"names": [n for n in names if n not in (".", "..")]}

    def op_read(self, path, offset, count):
        f = self.opened(path, O_RDONLY)
        try:
            buffer = ctypes.create_string_buffer(max(1, count))
            n = lib.nfs_pread(self.nfs, f, offset, count, buffer)
            if n == -errno.EFAULT:  # libnfs 4 keeps to itself with which of its errors the server refused a read
                raise Failure(errno.EIO, "the server refused the read")
            self.check(n)
            return ctypes.string_at(buffer, n)
        finally:
            self.close(f)

    def op_write(self, path, offset, data):
        f = self.opened(path, O_RDWR | O_SYNC)
        try:
            done = 0
            while done < len(data):
                n = self.check(lib.nfs_pwrite(self.nfs, f, offset + done, len(data) - done, data[done:]))
                if n == 0:
                    raise Failure(errno.EIO, "the server wrote nothing")
                done += n
        finally:
            self.close(f)

    def op_create(self, path, mode, exclusive):
        f = ctypes.c_void_p()
        flags = O_RDWR | O_SYNC | (O_EXCL if exclusive else 0)
        self.check(lib.nfs_create(self.nfs, path.encode(), flags, mode, ctypes.byref(f)))
        self.close(f)

    def op_rename(self, path, to):
        self.check(lib.nfs_rename(self.nfs, path.encode(), to.encode()))

    def op_unlink(self, path):
        self.check(lib.nfs_unlink(self.nfs, path.encode()))

    def op_rmdir(self, path):
        self.check(lib.nfs_rmdir(self.nfs, path.encode()))

    def op_truncate(self, path, size):
        self.check(lib.nfs_truncate(self.nfs, path.encode(), size))

    def op_access(self, path):
        return {"mode": self.check(lib.nfs_access2(self.nfs, path.encode()))}

    def op_statvfs(self, path):
        v = (ctypes.c_uint64 * 16)()
        self.check(lib.nfs_statvfs64(self.nfs, path.encode(), v))
        return {"frsize": v[1], "blocks": v[2], "bfree": v[3], "bavail": v[4]}


mounts = {}


def do(request):
    op = request.pop("op")
    who = request.pop("as", "vdsm")
    if "bytes" in request:
        request["data"] = sys.stdin.buffer.read(request.pop("bytes"))
    if op == "mount":
        mounts[who] = Mount(**request)
        return None
    return getattr(mounts[who], "op_" + op)(**request)


for line in sys.stdin.buffer:
    data = b""
    try:
        answer = do(json.loads(line)) or {}
        if isinstance(answer, bytes):
            answer, data = {"bytes": len(answer)}, answer
    except Failure as e:
        answer = {"errno": e.number, "error": str(e)}
    except Exception as e:  # a mistake of this program's, told where it is read
        answer = {"errno": 0, "error": "%s: %s" % (type(e).__name__, e)}
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n" + data)
    sys.stdout.flush()
