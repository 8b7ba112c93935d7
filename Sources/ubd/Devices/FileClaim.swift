import BrokerInterface
import CShims
import Glibc
import SystemCalls
import Targets

/// Claims the bytes of a device: two devices, or a device and another program, that write the same bytes without
/// knowing of each other destroy the data. A disk that is to be written is opened O_EXCL (open(2)). A file's bytes are
/// locked (F_OFD_SETLK, fcntl(2)). The lock belongs to the open file, so the worker and its replacements have it, and
/// it ends with the device. It binds only programs that ask for such locks: ubd, QEMU and some others.
struct FileClaim {
    /// Milliseconds in which others may release them. A device that was just deleted closes its file a moment later.
    var patience: UInt64 = 1000
    /// The bytes that an existing device uses, whose options do not say it; nil for a new device.
    var bytes: Range<UInt64>?
    var pause: (UInt64) -> Void = CommandEnvironment.sleep

    /// Milliseconds.
    private static let interval: UInt64 = 20

    /// Repeats `body` while another program has the claim.
    func patiently<Result: ~Copyable>(
        _ body: () throws(CommandFailure) -> Result
    ) throws(CommandFailure) -> Result {
        var waited: UInt64 = 0
        while true {
            do { return try body() } catch {
                guard error.status == .busy, error.name == FileClaim.code, waited < patience else { throw error }
            }
            pause(FileClaim.interval)
            waited += FileClaim.interval
        }
    }

    /// Locks the bytes that the device will use: exclusively when it writes, shared when it only reads.
    func lock(
        _ file: borrowing FileDescriptor, _ path: String, readOnly: Bool, _ options: DeviceOptions
    ) throws(CommandFailure) {
        let (offset, size) =
            bytes.map { ($0.lowerBound, $0.upperBound - $0.lowerBound) } ?? (options.offset, options.size ?? 0)
        // On a network file system the server handles locks: a lock may keep the worker's other open file out, and is
        // lost with the connection (fcntl_locking(2)).
        var system = statfs()
        if fstatfs(file.raw, &system) == 0,
            FileSystem(magic: UInt32(truncatingIfNeeded: system.f_type)).kind == .network
        {
            return
        }
        var range = flock()
        range.l_type = Int16(readOnly ? F_RDLCK : F_WRLCK)
        range.l_whence = Int16(SEEK_SET)
        range.l_start = off_t(clamping: offset)
        // 0: up to the end of the file, also after it grows.
        range.l_len = off_t(clamping: size)
        guard fcntl(file.raw, F_OFD_SETLK, &range) != 0 else { return }
        switch errno {
        case EAGAIN, EACCES: throw inUse(file, path, range)
        // A file system without locks has no lock of others either.
        case EINVAL, ENOSYS, EOPNOTSUPP: return
        case let number: throw FileClaim.unknown(path, number)
        }
    }

    /// The failure with the holder of the lock, as far as the kernel tells it: a process by its number, the owner of an
    /// open file not at all.
    private func inUse(_ file: borrowing FileDescriptor, _ path: String, _ wanted: flock) -> CommandFailure {
        var found = wanted
        let part = wanted.l_start == 0 && wanted.l_len == 0 ? "it" : "these bytes of it"
        guard fcntl(file.raw, F_OFD_GETLK, &found) == 0, found.l_type != Int16(F_UNLCK) else {
            return CommandFailure(
                .busy, FileClaim.code, "\(path) was in use: another device or program had locked \(part)",
                remedy: "try again; " + FileClaim.sharedRemedy)
        }
        let who = found.l_pid > 0 ? "process \(found.l_pid)" : "another device or program"
        guard found.l_type == Int16(F_RDLCK) else {
            return CommandFailure(
                .busy, FileClaim.code, "\(path) is in use: \(who) has locked \(part)",
                remedy: "see 'ubd list'; " + FileClaim.sharedRemedy)
        }
        return CommandFailure(
            .busy, FileClaim.code, "\(path) is in use: \(who), which only reads, has locked \(part) against writers",
            remedy:
                "see 'ubd list'; it may be another user's who may read the file: 'chmod go-r' keeps others out; with "
                + "--shared that reader sees what you write while you write it")
    }

    /// Nobody can tell whether others have locked the file, for example without memory for a lock.
    static func unknown(_ path: String, _ number: Int32) -> CommandFailure {
        CommandFailure(
            .failed, "FileClaimUnknown", "whether \(path) is in use can not be told: \(SystemError.message(number))",
            remedy: "try again; " + sharedRemedy)
    }

    static func diskInUse(_ path: String) -> CommandFailure {
        CommandFailure(
            .busy, code, "\(path) is in use: it is mounted, or behind another device",
            remedy: "unmount it, see 'lsblk \(path)' and 'ubd list'; a disk is claimed as a whole; " + sharedRemedy)
    }

    static let code = "FileInUse"
    private static let sharedRemedy = "--shared skips this check, but two writers destroy each other's data"
}
