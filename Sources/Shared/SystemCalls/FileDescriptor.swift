import CShims
import Glibc

/// An open file with exactly one owner; it closes the file. Its number is never 0, 1 or 2, since a program's output
/// would then go into the file.
public struct FileDescriptor: ~Copyable {
    /// The number, for calls that borrow the file. It must not be used after the owner has closed the file.
    public let raw: Int32

    /// Takes ownership of an open descriptor. CShims/start.c makes sure that 0 to 2 are in use.
    public init(owning raw: Int32) {
        precondition(raw > STDERR_FILENO)
        self.raw = raw
    }

    deinit {
        // A failed close needs no handling: Linux releases the number in any case.
        _ = Glibc.close(raw)
    }

    /// Gives up ownership: the caller closes the descriptor or passes it on.
    public consuming func release() -> Int32 {
        let number = raw
        discard self
        return number
    }

    /// Opens `path`; always close-on-exec.
    public static func open(_ path: String, _ flags: Int32, mode: mode_t = 0) throws(SystemError) -> FileDescriptor {
        FileDescriptor(
            owning: try call("open \(path)") { Glibc.open(path, flags | O_CLOEXEC, mode) })
    }

    /// Opens a NUL-terminated path that need not be UTF-8; always close-on-exec. `name` is for messages.
    public static func open(bytes path: [CChar], name: String, _ flags: Int32) throws(SystemError) -> FileDescriptor {
        FileDescriptor(owning: try call("open \(name)") { Glibc.open(path, flags | O_CLOEXEC) })
    }

    /// Stands in for standard input or output: /dev/null, or where a container has none, a descriptor on which every
    /// read and write fails (EBADF).
    public static func null() throws(SystemError) -> FileDescriptor {
        do { return try open("/dev/null", O_RDWR | O_NOCTTY) } catch { return try open("/", O_PATH) }
    }

    /// A second descriptor of the same open file, close-on-exec.
    public func duplicate() throws(SystemError) -> FileDescriptor { try FileDescriptor.duplicate(of: raw) }

    /// A second descriptor of an open file that somebody else owns, close-on-exec. It gets the lowest free number from
    /// 3 on.
    public static func duplicate(of raw: Int32) throws(SystemError) -> FileDescriptor {
        FileDescriptor(owning: try call("duplicate descriptor") { fcntl(raw, F_DUPFD_CLOEXEC, 3) })
    }

    public func status() throws(SystemError) -> stat {
        var result = stat()
        try call("fstat") { fstat(raw, &result) }
        return result
    }

    /// Reads at most `buffer.count` bytes; 0 means end of file.
    public func read(into buffer: UnsafeMutableRawBufferPointer) throws(SystemError) -> Int {
        try call("read") { Glibc.read(raw, buffer.baseAddress, buffer.count) }
    }

    /// Writes all bytes, in as many calls as needed.
    public func writeAll(_ bytes: [UInt8]) throws(SystemError) {
        var done = 0
        while done < bytes.count {
            done += try call("write") {
                bytes.withUnsafeBytes { Glibc.write(raw, $0.baseAddress! + done, $0.count - done) }
            }
        }
    }

    /// Reads to the end of the file, at most `limit` bytes; a longer file throws EFBIG.
    public func readAll(limit: Int) throws(SystemError) -> [UInt8] {
        var result: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 16384)
        while true {
            let count = try call("read") {
                chunk.withUnsafeMutableBytes { Glibc.read(raw, $0.baseAddress, $0.count) }
            }
            if count == 0 { return result }
            result.append(contentsOf: chunk[0..<count])
            if result.count > limit { throw SystemError("read", EFBIG) }
        }
    }

    /// Reads the whole file from its start, at most `limit` bytes; a longer file throws EFBIG. It does not move the
    /// offset, which all descriptors of this open file share.
    public func readWhole(limit: Int) throws(SystemError) -> [UInt8] {
        var result = [UInt8](repeating: 0, count: limit + 1)
        var done = 0
        while done < result.count {
            let count = try call("pread") {
                result.withUnsafeMutableBytes { pread(raw, $0.baseAddress! + done, $0.count - done, off_t(done)) }
            }
            if count == 0 {
                result.removeLast(result.count - done)
                return result
            }
            done += count
        }
        throw SystemError("pread", EFBIG)
    }

    /// Makes reads and writes return EAGAIN instead of waiting.
    public func setNonBlocking() throws(SystemError) {
        let flags = try call("fcntl") { fcntl(raw, F_GETFL) }
        try call("fcntl") { fcntl(raw, F_SETFL, flags | O_NONBLOCK) }
    }
}

/// Reads a small file, for example one in /proc or /sys.
public func readFile(_ path: String, limit: Int = 1 << 20) throws(SystemError) -> [UInt8] {
    do {
        return try FileDescriptor.open(path, O_RDONLY | O_NOCTTY).readAll(limit: limit)
    } catch {
        throw SystemError("read \(path)", error.errno)
    }
}

/// Replaces a file atomically: readers see the old content or the new.
public func replaceFile(_ path: String, with bytes: [UInt8], mode: mode_t) throws(SystemError) {
    try putFile(path, bytes, mode) { rename($0, path) }
}

/// Creates a file atomically. Throws EEXIST when the name is taken.
public func createFile(_ path: String, with bytes: [UInt8], mode: mode_t) throws(SystemError) {
    // RENAME_NOREPLACE (rename(2)).
    try putFile(path, bytes, mode) { renameat2(AT_FDCWD, $0, AT_FDCWD, path, 1) }
}

/// Writes a temporary file beside `path` and moves it there. A failure leaves no temporary file.
private func putFile(
    _ path: String, _ bytes: [UInt8], _ mode: mode_t, _ move: (_ from: String) -> Int32
) throws(SystemError) {
    let temporary = path + ".new"
    if unlink(temporary) != 0, errno != ENOENT { throw SystemError("unlink \(temporary)", errno) }
    do throws(SystemError) {
        let file = try FileDescriptor.open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, mode: mode)
        try file.writeAll(bytes)
        try call("rename \(temporary)") { move(temporary) }
    } catch {
        unlink(temporary)
        throw error
    }
}

/// Two descriptors made together: a pipe (`first` reads, `second` writes) or a socket pair.
@frozen
public struct DescriptorPair: ~Copyable {
    public var first: FileDescriptor
    public var second: FileDescriptor
}

/// A pipe, close-on-exec: `first` is for reading, `second` for writing.
public func makePipe() throws(SystemError) -> DescriptorPair {
    var ends: [Int32] = [0, 0]
    try call("pipe") { pipe2(&ends, O_CLOEXEC) }
    return DescriptorPair(first: FileDescriptor(owning: ends[0]), second: FileDescriptor(owning: ends[1]))
}
