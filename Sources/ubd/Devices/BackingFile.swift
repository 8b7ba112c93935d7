import BrokerInterface
import CShims
import Glibc
import SystemCalls
import Targets

/// The file behind a loop device, opened with the user's own rights: once for the page cache, and once more for direct
/// I/O where the file supports it. The worker checks everything again; the checks here give better messages.
struct BackingFile: ~Copyable {
    private let buffered: FileDescriptor
    private let direct: FileDescriptor?
    /// The file cannot be written, or need not be.
    let readOnly: Bool
    /// Notes for the user.
    let notices: [Notice]

    /// The files in the order of the interface: buffered, then direct.
    var numbers: [Int32] {
        switch direct {
        case .some(let direct): [buffered.raw, direct.raw]
        case .none: [buffered.raw]
        }
    }

    /// Opens `path`.
    ///
    /// - Parameters:
    ///   - readOnly: the user asked for a read-only device.
    ///   - options: the options of the device; its bounds are compared with the size of a regular file.
    ///   - hasTwin: the target also takes the file opened for direct I/O.
    ///   - shared: other devices and programs may use the same bytes (see FileClaim).
    ///   - claim: the bytes to claim, and how long to wait until others release them.
    static func open(
        _ path: String, readOnly: Bool, options: DeviceOptions, hasTwin: Bool = true, shared: Bool = false,
        claim: FileClaim = FileClaim()
    ) throws(CommandFailure) -> BackingFile {
        let kind = try status(path)
        try checkKind(kind, path)
        var notices: [Notice] = []
        let isDisk = kind.st_mode & S_IFMT == S_IFBLK
        let opened = try openClaimed(path, readOnly: readOnly, isDisk: isDisk, shared: shared, claim, &notices)
        if opened.readOnly, !readOnly {
            notices.append(
                Notice(code: "read-only", message: "\(path) is not writable, so the device is read-only"))
        }
        let status = try status(of: opened.file, path)
        // Once more: the opened file may be another one than the name had before.
        try checkKind(status, path)
        try checkSize(status, path, options)
        try checkOutput(status, path)
        if shared {
            // A lock for others to find. An existing lock of others is no reason to refuse.
            do { try claim.lock(opened.file, path, readOnly: opened.readOnly, options) } catch {
                let notice = unclaimed(path)
                if !notices.contains(notice) { notices.append(notice) }
            }
        } else {
            try claim.patiently { () throws(CommandFailure) in
                try claim.lock(opened.file, path, readOnly: opened.readOnly, options)
            }
        }
        let direct =
            options.buffered || !hasTwin ? nil : try openDirect(path, readOnly: opened.readOnly, status, &notices)
        return BackingFile(
            readOnly: opened.readOnly, notices: notices, buffered: opened.file, direct: direct)
    }

    /// Opens `path` for reading, to learn its kind and size. It stays non-blocking.
    static func openToLook(_ path: String) throws(CommandFailure) -> FileDescriptor {
        try checkKind(status(path), path)
        let flags = O_RDONLY | O_NONBLOCK | O_NOCTTY
        do throws(SystemError) {
            return try FileDescriptor.open(bytes: path.systemPath, name: path, flags)
        } catch { throw cannotOpen(path, error.errno) }
    }

    /// Lets a ring read the buffered file without a helper thread where it lies in memory, for a target that uses no other.
    func stayWaitless() { BackingFile.stayWaitlessInMemory(buffered) }

    private init(
        readOnly: Bool, notices: [Notice], buffered: consuming FileDescriptor, direct: consuming FileDescriptor?
    ) {
        self.buffered = buffered
        self.direct = direct
        self.readOnly = readOnly
        self.notices = notices
    }

    // MARK: Checks

    private static func status(_ path: String) throws(CommandFailure) -> stat {
        var result = stat()
        guard stat(path.systemPath, &result) == 0 else { throw cannotOpen(path, errno) }
        return result
    }

    private static func status(of file: borrowing FileDescriptor, _ path: String) throws(CommandFailure) -> stat {
        do { return try file.status() } catch { throw cannotOpen(path, error.errno) }
    }

    private static func checkKind(_ status: stat, _ path: String) throws(CommandFailure) {
        let kind: String
        switch status.st_mode & S_IFMT {
        case S_IFREG, S_IFBLK: return
        case S_IFDIR: kind = "a directory"
        case S_IFIFO: kind = "a FIFO"
        case S_IFSOCK: kind = "a socket"
        case S_IFCHR: kind = "a character device"
        default: kind = "neither a regular file nor a block device"
        }
        throw CommandFailure(
            .usage, "BadFile", "\(path) is \(kind)", remedy: "give a regular file or a block device to --file")
    }

    /// The command's output must not go into the file: `ubd add -f disk.img >>disk.img`.
    private static func checkOutput(_ file: stat, _ path: String) throws(CommandFailure) {
        for number in [STDOUT_FILENO, STDERR_FILENO] {
            var output = stat()
            guard fstat(number, &output) == 0, output.st_mode & S_IFMT == file.st_mode & S_IFMT else { continue }
            let isDisk = file.st_mode & S_IFMT == S_IFBLK
            guard isDisk ? output.st_rdev == file.st_rdev : output.st_dev == file.st_dev && output.st_ino == file.st_ino
            else { continue }
            throw CommandFailure(
                .usage, "BadFile", "\(path) is where this command prints", remedy: "send the output somewhere else")
        }
    }

    /// Compares the bounds with a regular file; the size of a block device is left to the worker.
    private static func checkSize(_ status: stat, _ path: String, _ options: DeviceOptions) throws(CommandFailure) {
        guard status.st_mode & S_IFMT == S_IFREG else { return }
        let bytes = UInt64(clamping: status.st_size)
        guard bytes > 0 else {
            throw CommandFailure(
                .usage, "BadFile", "\(path) is empty", remedy: "give it a size first, as in 'truncate -s 1G FILE'")
        }
        let block = UInt64(options.blockSize ?? 512)
        let needed = options.size ?? block
        guard options.offset <= bytes, needed <= bytes - options.offset else {
            throw CommandFailure(
                .usage, "BadFile",
                "\(path) has \(bytes) bytes, the device needs \(needed) from offset \(options.offset) on",
                remedy: "enlarge the file ('truncate -s SIZE FILE') or give a smaller --offset or --size")
        }
    }

    // MARK: Opening

    private struct Opened: ~Copyable {
        var file: FileDescriptor
        var readOnly: Bool
    }

    /// Claims a shared disk, too, unless another program has it.
    private static func openClaimed(
        _ path: String, readOnly: Bool, isDisk: Bool, shared: Bool, _ claim: FileClaim, _ notices: inout [Notice]
    ) throws(CommandFailure) -> Opened {
        guard shared else {
            return try claim.patiently { () throws(CommandFailure) in
                try openAsAllowed(path, wantsReadOnly: readOnly, exclusively: isDisk)
            }
        }
        do { return try openAsAllowed(path, wantsReadOnly: readOnly, exclusively: isDisk) } catch {
            guard error.name == FileClaim.code else { throw error }
        }
        notices.append(unclaimed(path))
        return try openAsAllowed(path, wantsReadOnly: readOnly, exclusively: false)
    }

    private static func unclaimed(_ path: String) -> Notice {
        Notice(
            code: "shared",
            message:
                "\(path) is in use already, so this device has no claim on it: later users are not refused, even without --shared"
        )
    }

    /// `exclusively`: a disk that is to be written must not be mounted, nor in use by LVM, MD or another such device,
    /// and cannot become so while the file is open (O_EXCL, open(2)).
    private static func openAsAllowed(
        _ path: String, wantsReadOnly: Bool, exclusively: Bool
    ) throws(CommandFailure) -> Opened {
        if !wantsReadOnly {
            let flags = O_RDWR | (exclusively ? O_EXCL : 0)
            do { return Opened(file: try openWaitless(path, flags), readOnly: false) } catch {
                if exclusively, error.errno == EBUSY { throw FileClaim.diskInUse(path) }
                guard [EACCES, EROFS, EPERM].contains(error.errno) else { throw cannotOpen(path, error.errno) }
            }
        }
        do { return Opened(file: try openWaitless(path, O_RDONLY), readOnly: true) } catch {
            throw cannotOpen(path, error.errno)
        }
    }

    /// Opens without waiting for the other end of a FIFO that replaced the file meanwhile. Clears O_NONBLOCK
    /// afterwards: the worker shares the open file, and io_uring would fail its requests instead of waiting.
    private static func openWaitless(_ path: String, _ flags: Int32) throws(SystemError) -> FileDescriptor {
        let file = try FileDescriptor.open(bytes: path.systemPath, name: path, flags | O_NONBLOCK | O_NOCTTY)
        let current = try call("fcntl \(path)") { fcntl(file.raw, F_GETFL) }
        try call("fcntl \(path)") { fcntl(file.raw, F_SETFL, current & ~O_NONBLOCK) }
        return file
    }

    private static func openDirect(
        _ path: String, readOnly: Bool, _ first: stat, _ notices: inout [Notice]
    ) throws(CommandFailure) -> FileDescriptor? {
        let file: FileDescriptor
        do { file = try openWaitless(path, (readOnly ? O_RDONLY : O_RDWR) | O_DIRECT) } catch {
            guard error.errno == EINVAL else { throw cannotOpen(path, error.errno) }
            notices.append(
                Notice(code: "buffered", message: "\(path) does not take direct I/O, so the page cache is used"))
            return nil
        }
        // The node of a block device lies on tmpfs, too, but not its data.
        if first.st_mode & S_IFMT == S_IFREG { stayWaitlessInMemory(file) }
        let second = try status(of: file, path)
        guard second.st_dev == first.st_dev, second.st_ino == first.st_ino else {
            throw CommandFailure(
                .failed, "BadFile", "\(path) was replaced by another file while it was being opened",
                remedy: "try again when no program replaces it")
        }
        return file
    }

    /// The file lies on tmpfs.
    static func isInMemory(_ file: borrowing FileDescriptor) -> Bool {
        var system = statfs()
        return fstatfs(file.raw, &system) == 0 && system.f_type == 0x0102_1994
    }

    /// tmpfs completes direct I/O at once but does not set FMODE_NOWAIT, so io_uring would hand every request to a
    /// helper thread. O_NONBLOCK on the file has the same effect as that flag when a ring registers it
    /// (io_file_get_flags). Only for tmpfs: on file systems that wait, the queue's thread would wait.
    static func stayWaitless(_ file: borrowing FileDescriptor) {
        let current = fcntl(file.raw, F_GETFL)
        // Without the flag I/O works, too, but slower.
        if current >= 0 { _ = fcntl(file.raw, F_SETFL, current | O_NONBLOCK) }
    }

    /// The same for a file that may lie on another file system.
    static func stayWaitlessInMemory(_ file: borrowing FileDescriptor) {
        if isInMemory(file) { stayWaitless(file) }
    }

    private static var workingFolderIsGone: Bool {
        let path = getcwd(nil, 0)
        free(path)
        return path == nil
    }

    private static func cannotOpen(_ path: String, _ error: Int32) -> CommandFailure {
        let text = "\(path): \(SystemError.message(error))"
        switch error {
        case ENOENT where !path.hasPrefix("/") && workingFolderIsGone:
            return CommandFailure(
                .usage, "BadFile", "\(path): the working directory is gone", remedy: "change into one that exists")
        case EMFILE:
            return CommandFailure(.failed, "BadFile", text, remedy: "allow more open files, as in 'ulimit -n 64'")
        case ENOENT where path.hasPrefix("/dev/"):
            return CommandFailure(.usage, "BadFile", text, remedy: "'lsblk' lists the disks")
        case ENOENT, ENOTDIR:
            return CommandFailure(
                .usage, "BadFile", text, remedy: "create it first, as in 'truncate -s 1G FILE'")
        case EACCES, EPERM:
            return CommandFailure(
                .notPermitted, "BadFile", text, remedy: "give a file that you may read (and write, unless --read-only)")
        case ETXTBSY:
            return CommandFailure(.busy, "BadFile", text, remedy: "a running program can only be used with --read-only")
        default: return CommandFailure(.failed, "BadFile", text, remedy: "give a file that can be opened")
        }
    }
}
