import BrokerInterface
import CShims
import Glibc
import PartitionTables
import SystemCalls

/// A file or block device whose partition table is read. Children read it, as nothing can end a read on a file that does
/// not answer (see `ContentSectors.look`).
struct DiskFile: DiskContent {
    let path: String
    /// Bytes.
    let size: UInt64
    let isBlockDevice: Bool
    /// Bytes: the smallest block that a device on it can have.
    private let smallestBlock: UInt64
    private let identity: (device: dev_t, inode: ino_t)
    /// Seconds that a read may take.
    private let seconds: Int
    private var window = (offset: UInt64(0), bytes: [UInt8]())

    /// Bytes that a child reads at once: more than a table of the usual size with its header.
    private static let windowBytes: UInt64 = 64 << 10

    init(_ path: String, seconds: Int) throws(CommandFailure) {
        let file = try BackingFile.openToLook(path)
        var status = stat()
        let end = lseek(file.raw, 0, Int32(SEEK_END))
        guard fstat(file.raw, &status) == 0, end >= 0 else {
            throw CommandFailure(
                SystemError("read the size of \(path)", errno), remedy: "give a regular file or a disk")
        }
        self.path = path
        self.seconds = seconds
        size = UInt64(end)
        isBlockDevice = status.st_mode & S_IFMT == S_IFBLK
        smallestBlock = ContentSectors.smallestBlock(of: file.raw)
        identity = (status.st_dev, status.st_ino)
    }

    /// The table of the file. `sectorSize`: bytes, where the file does not show it; nil: a disk's own, 512 for a file.
    mutating func table(sectorSize: UInt64?) throws(CommandFailure) -> PartitionTable {
        do {
            return try PartitionTable.read(&self, sectorSize: sectorSize ?? (isBlockDevice ? smallestBlock : nil))
        } catch { throw failure(error) }
    }

    /// Whether that open file is the one whose table was read.
    func isSame(as file: Int32) -> Bool {
        var status = stat()
        return fstat(file, &status) == 0 && status.st_dev == identity.device && status.st_ino == identity.inode
    }

    mutating func bytes(at offset: UInt64, count: Int) throws(PartitionTableError) -> [UInt8] {
        let wanted = UInt64(count)
        if offset < window.offset || offset - window.offset + wanted > UInt64(window.bytes.count) {
            let most = min(max(Self.windowBytes, wanted), size - offset)
            window = (offset, try read(at: offset, count: Int(most)))
        }
        let start = Int(offset - window.offset)
        // Shorter: somebody has cut the file off meanwhile.
        guard start + count <= window.bytes.count else { throw .unreadable(errno: EIO) }
        return Array(window.bytes[start..<start + count])
    }

    private func read(at offset: UInt64, count: Int) throws(PartitionTableError) -> [UInt8] {
        let bytes: (bytes: [UInt8], status: Int32)?
        do throws(SystemError) {
            let path = path.systemPath
            let child = try HelperProcess { (output, null) throws(SystemError) in
                let pid = ubd_head_child(path, off_t(clamping: offset), count, -1, null, output)
                guard pid > 0 else { throw SystemError("start a child", -pid) }
                return pid
            }
            bytes = try child.bytes(most: count, Deadline(seconds: seconds))
        } catch { throw .unreadable(errno: error.errno) }
        guard let bytes else { throw .unreadable(errno: ETIMEDOUT) }
        guard bytes.status == 0 else { throw .unreadable(errno: bytes.status > 0 ? bytes.status : ECANCELED) }
        return bytes.bytes
    }

    private func failure(_ error: PartitionTableError) -> CommandFailure {
        switch error {
        case .unreadable(let errno):
            CommandFailure(
                .failed, "NotReadable", "\(path) could not be read: \(SystemError.message(errno))",
                remedy: CommandFailure.limitRemedy(errno) ?? "try again when it can be read")
        case .none:
            CommandFailure(
                .failed, "NoPartitionTable", "\(path) \(error.text)",
                remedy: "make one with sfdisk, or use the file as a whole")
        case .ambiguous:
            CommandFailure(
                .failed, "BadPartitionTable", "\(path) \(error.text)", remedy: "say it with --block-size 512 or 4096")
        case .unprotected, .damaged:
            CommandFailure(
                .failed, "BadPartitionTable", "\(path) \(error.text)",
                remedy: "repair it with gdisk or sfdisk, or name the bytes yourself with --offset and --size")
        }
    }
}
