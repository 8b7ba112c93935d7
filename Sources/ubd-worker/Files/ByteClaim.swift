import Glibc
import WorkerProtocol

/// The locks that keep other devices, and other programs that ask for such locks, from the bytes of a device (F_OFD_SETLK,
/// fcntl_locking(2)). The client makes them when it adds the device; a worker changes them when the device gets another
/// size. They belong to the client's open file, so they are the device's, whichever process made them.
struct ByteClaim: Sendable {
    /// The file, as the client opened it first: the one whose bytes it has locked.
    private let descriptor: Int32
    /// Bytes of the file.
    private let begin: UInt64
    private let end: UInt64
    /// The device ends where its file ends, also after the file grows.
    private let followsFile: Bool
    private let readOnly: Bool

    /// Milliseconds in which others may release the bytes. A device that was just deleted closes its file a moment later.
    private static let patience = 1000
    private static let interval = 20

    /// nil where bytes are not locked: a disk is claimed as a whole, and a network server handles locks itself.
    init?(_ file: ClientFile, _ launch: LaunchMessage, size: UInt64, readOnly: Bool) {
        if file.isBlockDevice || file.fileSystem?.kind == .network { return nil }
        descriptor = file.descriptor
        begin = launch.options.offset
        end = begin + size
        followsFile = launch.options.size == nil
        self.readOnly = readOnly
    }

    /// Locks the bytes of the device.
    func take() throws(WorkerFailure) {
        var waited = 0
        while true {
            switch set(Int16(readOnly ? F_RDLCK : F_WRLCK), begin, followsFile ? 0 : end - begin) {
            // A file system without locks has no lock of others either.
            case 0, EINVAL, ENOSYS, EOPNOTSUPP: return
            case EAGAIN, EACCES:
                guard waited < ByteClaim.patience else { throw WorkerFailure(.bytesInUse) }
            case let number: throw WorkerFailure(.bytesInUse, errno: number)
            }
            var pause = timespec(tv_sec: 0, tv_nsec: ByteClaim.interval * 1_000_000)
            nanosleep(&pause, nil)
            waited += ByteClaim.interval
        }
    }

    /// Unlocks all bytes behind the device. A failure only keeps them from others.
    func releaseRest() { _ = set(Int16(F_UNLCK), end, 0) }

    /// `length`: 0 for all bytes from `start` on. Returns the errno, or 0.
    private func set(_ type: Int16, _ start: UInt64, _ length: UInt64) -> Int32 {
        var range = flock()
        range.l_type = type
        range.l_whence = Int16(SEEK_SET)
        range.l_start = off_t(clamping: start)
        range.l_len = off_t(clamping: length)
        return fcntl(descriptor, F_OFD_SETLK, &range) == 0 ? 0 : errno
    }
}
