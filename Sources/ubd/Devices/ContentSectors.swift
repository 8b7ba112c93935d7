import BrokerInterface
import CShims
import Glibc
import SystemCalls

/// The sector size that a disk's content was made for, as far as its first bytes show. A partition table counts in
/// sectors, and most file systems cannot be mounted from blocks larger than their own: with another block size the same
/// bytes are another disk, or no disk.
enum ContentSectors: Equatable {
    /// A GUID partition table (GPT) for sectors of that many bytes.
    case table(UInt64)
    /// A file system, by its name, that needs blocks of at most that many bytes.
    case fileSystem(String, UInt64)

    /// How many bytes of the beginning of a disk are read.
    static let headBytes = 36 << 10

    /// The content by the beginning of a disk; nil when it is unknown or ambiguous.
    init?(head: [UInt8]) {
        let head = DiskHead(bytes: head)
        let tables: [UInt64] = [512, 4096].filter { head.hasPartitionTable(at: $0) }
        if tables.count == 1 {
            self = .table(tables[0])
        } else if tables.isEmpty, let (name, bytes) = head.fileSystem {
            self = .fileSystem(name, bytes)
        } else {
            return nil
        }
    }

    /// The content of a file from `offset` (bytes) on; nil when it is unknown. A child reads it: nothing can end a read
    /// on a disk that hangs, and a process that waits for it could not end either. (RWF_NOWAIT does not help: it starts
    /// read-ahead, which may wait for the file system's own blocks.) `user`: the user as whom the child reads, when the
    /// caller is root.
    ///
    /// - Throws: SystemError; ETIMEDOUT when the file does not answer.
    static func look(
        at path: String, offset: UInt64, as user: UInt32? = nil, seconds: Int
    ) throws(SystemError) -> ContentSectors? {
        let child = try HelperProcess { (output, null) throws(SystemError) in
            let user = user.map(Int64.init) ?? -1
            let pid = ubd_head_child(path.systemPath, off_t(clamping: offset), headBytes, user, null, output)
            guard pid > 0 else { throw SystemError("start a child", -pid) }
            return pid
        }
        guard let head = try child.bytes(most: headBytes, Deadline(seconds: seconds)) else {
            throw SystemError("read \(path)", ETIMEDOUT)
        }
        // A signal has ended it: -1.
        guard head.status == 0 else { throw SystemError("read \(path)", head.status > 0 ? head.status : ECANCELED) }
        return ContentSectors(head: head.bytes)
    }

    /// "a partition table (GPT) of 512-byte sectors".
    var text: String {
        switch self {
        case .table(let bytes): "a partition table (GPT) of \(bytes)-byte sectors"
        case .fileSystem(let name, let bytes): "\(name) of \(bytes)-byte sectors"
        }
    }

    /// The block size for a device on a regular file for which none was given and the default, 512 bytes, would be
    /// wrong; nil when 512 is right. No other size can read a table of 4096-byte sectors.
    var otherThanUsual: UInt64? { self == .table(4096) ? 4096 : nil }

    /// The block size that the content needs instead; nil when this one fits.
    func needed(insteadOf blockSize: UInt64) -> UInt64? {
        switch self {
        case .table(let bytes): bytes == blockSize ? nil : bytes
        // A file system builds larger blocks from smaller ones of the device.
        case .fileSystem(_, let bytes): bytes < blockSize ? bytes : nil
        }
    }

    /// The note for a device whose blocks do not fit the content; nil when they fit.
    ///
    /// `smallest`: bytes, the smallest block that the file can have; more than 512 only for a disk.
    func notice(_ name: String, blockSize: UInt64, smallest: UInt64) -> Notice? {
        guard let needed = needed(insteadOf: blockSize) else { return nil }
        let what = "\(name) has \(text), which cannot be read from the device's blocks of \(blockSize) bytes; "
        return Notice(
            code: "block-size",
            message: what
                + (needed < smallest
                    ? "this disk has none smaller than \(smallest): copy its content into a file"
                    : "delete the device and add it with --block-size \(needed)"))
    }

    /// The smallest block in bytes that a device on that open file can have.
    static func smallestBlock(of file: Int32) -> UInt64 {
        var (status, bytes) = (stat(), Int32(0))
        guard fstat(file, &status) == 0, status.st_mode & S_IFMT == S_IFBLK, ioctl(file, ubd_BLKSSZGET, &bytes) == 0
        else { return 512 }
        return UInt64(max(bytes, 512))
    }
}

/// The first bytes of a disk. Reads beyond them give 0 or false.
private struct DiskHead {
    var bytes: [UInt8]

    /// A little-endian number; 0 where there are no such bytes.
    func number(at offset: Int, bytes count: Int) -> UInt64 {
        guard offset + count <= bytes.count else { return 0 }
        return (0..<count).reduce(0) { $0 | UInt64(bytes[offset + $1]) << (8 * UInt64($1)) }
    }

    func has(_ text: String, at offset: Int) -> Bool {
        offset + text.utf8.count <= bytes.count && bytes[offset...].starts(with: text.utf8)
    }

    /// The header of a GPT lies in sector 1, whose number stands in it (UEFI specification, 5.3.2). Its checksum is right.
    func hasPartitionTable(at sector: UInt64) -> Bool {
        let start = Int(sector)
        let size = Int(number(at: start + 12, bytes: 4))
        guard has("EFI PART", at: start), number(at: start + 24, bytes: 8) == 1, (92...512).contains(size),
            start + size <= bytes.count
        else { return false }
        var header = Array(bytes[start..<start + size])
        header.replaceSubrange(16..<20, with: [0, 0, 0, 0])
        return Self.checksum(header) == number(at: start + 16, bytes: 4)
    }

    /// CRC-32 as in Ethernet and zlib.
    private static func checksum(_ bytes: [UInt8]) -> UInt64 {
        var value: UInt32 = .max
        for byte in bytes {
            value ^= UInt32(byte)
            for _ in 0..<8 { value = value >> 1 ^ (value & 1 == 1 ? 0xedb8_8320 : 0) }
        }
        return UInt64(~value)
    }

    /// A file system that cannot be mounted from larger blocks: its name and the size of these blocks in bytes.
    var fileSystem: (String, UInt64)? {
        let sector = number(at: 11, bytes: 2)
        if has("NTFS    ", at: 3), isSector(sector) { return ("NTFS", sector) }
        if has("EXFAT   ", at: 3), (9...12).contains(number(at: 108, bytes: 1)) {
            return ("exFAT", 1 << number(at: 108, bytes: 1))
        }
        if has("XFSB", at: 0) {
            let sector = number(at: 102, bytes: 2)
            let swapped = sector >> 8 | (sector & 0xff) << 8
            return isSector(swapped) ? ("XFS", swapped) : nil
        }
        // ext2, ext3, ext4: the magic number and the size of a block in the superblock at byte 1024.
        if number(at: 1080, bytes: 2) == 0xef53, number(at: 1048, bytes: 4) <= 6 {
            return ("an ext file system", 1024 << number(at: 1048, bytes: 4))
        }
        if isFAT { return ("FAT", sector) }
        return has("CD001", at: 32769) ? ("ISO 9660", 2048) : nil
    }

    private func isSector(_ bytes: UInt64) -> Bool { [512, 1024, 2048, 4096].contains(bytes) }

    /// A partition table has the same signature as a boot sector, so the fields of FAT before it must be plausible,
    /// too.
    private var isFAT: Bool {
        let cluster = number(at: 13, bytes: 1)
        return number(at: 510, bytes: 2) == 0xaa55 && [0xeb, 0xe9].contains(number(at: 0, bytes: 1))
            && isSector(number(at: 11, bytes: 2)) && cluster.nonzeroBitCount == 1
            && number(at: 14, bytes: 2) > 0 && (1...2).contains(number(at: 16, bytes: 1))
            && number(at: 21, bytes: 1) >= 0xf0
    }
}
