import CShims
import Glibc
import SystemCalls

/// Discards and zeroes ranges of a regular file by system calls. It uses only the mode of fallocate(2) that makes
/// holes, since every other mode can allocate blocks.
struct FileRangeWork: Sendable {
    /// The file through the page cache, for holes.
    let file: Int32
    /// The file that data is written to, for zeros. Only one of the two files gets data: direct writes and pages of one
    /// file that are written at the same time may undo each other.
    let dataFile: Int32
    /// The end of the disk in the file, in bytes; no range goes beyond it.
    let end: UInt64
    /// Pages of zeros, which take no memory: the kernel maps its page of zeros for memory that is only read.
    private let zeroes: UInt

    /// Bytes of one write.
    private static let writeBytes = 1 << 20
    /// How often an interrupted call is repeated.
    private static let mostRetries = 16

    init(file: Int32, dataFile: Int32, end: UInt64) throws(SystemError) {
        self.file = file
        self.dataFile = dataFile
        self.end = end
        let memory = mmap(nil, FileRangeWork.writeBytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        guard let memory, memory != MAP_FAILED else { throw SystemError("mmap", errno) }
        zeroes = UInt(bitPattern: memory)
    }

    /// 0, or a negated errno. `offset` and `bytes` of the file.
    func perform(_ kind: RangeBoard.Kind, _ offset: UInt64, _ bytes: UInt64) -> Int32 {
        // The caller has checked this, too: a hole beyond the disk would be in the rest of its owner's file.
        guard offset <= end, bytes <= end - offset else { return -EIO }
        switch kind {
        case .discard: return punch(offset, bytes)
        case .zero:
            switch punch(offset, bytes) {
            // The errors of a file system that makes no holes, or not at this place.
            case -EOPNOTSUPP, -EINVAL, -ENOSYS: return write(offset, bytes)
            case let result: return result
            }
        case .zeroAllocated: return write(offset, bytes)
        }
    }

    private func punch(_ offset: UInt64, _ bytes: UInt64) -> Int32 {
        let mode = Int32(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)
        return repeated { Int(fallocate(file, mode, off_t(offset), off_t(bytes))) }.map { _ in 0 } ?? -errno
    }

    private func write(_ offset: UInt64, _ bytes: UInt64) -> Int32 {
        var done: UInt64 = 0
        while done < bytes {
            let count = Int(min(bytes - done, UInt64(FileRangeWork.writeBytes)))
            let source = UnsafeRawPointer(bitPattern: zeroes)
            guard let written = repeated({ pwrite(dataFile, source, count, off_t(offset + done)) }) else {
                return -errno
            }
            guard written > 0 else { return -EIO }
            done += UInt64(written)
        }
        return 0
    }

    /// The result of the call; nil when it fails, with the reason in `errno`.
    private func repeated(_ body: () -> Int) -> Int? {
        for _ in 0..<FileRangeWork.mostRetries {
            let result = body()
            if result >= 0 { return result }
            if errno != EINTR, errno != EAGAIN { return nil }
        }
        errno = EIO
        return nil
    }
}
