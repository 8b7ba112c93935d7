/// A disk's partition table: a GPT (UEFI specification, chapter 5) or an MBR with logical partitions. What a disk says is
/// untrusted: reading it ends, takes little memory, and a number that cannot be right is a fault and no partition.
public struct PartitionTable: Equatable, Sendable {
    /// The kind of a table, as sfdisk(8) names it.
    public enum Label: String, Sendable {
        case gpt
        case dos
    }

    public struct Partition: Equatable, Sendable {
        /// The disk's own number, from 1 on. In an MBR those from 5 on are logical partitions.
        public var number: Int
        /// Bytes from the disk's start.
        public var offset: UInt64
        /// Bytes.
        public var size: UInt64
        /// A GUID (gpt), or a hexadecimal number (dos).
        public var type: String
        /// Only gpt has names. Any text: it may steer a terminal.
        public var name: String?
        /// An extended partition: it holds the logical ones and no data of its own.
        public var isContainer = false
        /// Why these bytes cannot be a disk: continues a sentence that begins with the partition.
        public var fault: String?

        /// The first byte behind it; nil when it is beyond 64 bits.
        var end: UInt64? {
            let (sum, isTooLarge) = offset.addingReportingOverflow(size)
            return isTooLarge ? nil : sum
        }
    }

    public var label: Label
    /// Bytes of the sectors in which the table counts.
    public var sectorSize: UInt64
    /// In the order of their numbers.
    public var partitions: [Partition]
    /// What is wrong with the table although it can be read; sentences without a full stop.
    public var notes: [String]

    /// The sizes of sectors, in bytes, for which tables are made.
    public static let sectorSizes: [UInt64] = [512, 4096]

    /// Reads the table of a disk.
    ///
    /// - Parameter sectorSize: bytes of a sector where the disk does not show it: in an MBR, and where there is a GPT for
    ///   each size. nil: 512 for an MBR; two GPTs are an error.
    public static func read(
        _ disk: inout some DiskContent, sectorSize: UInt64? = nil
    ) throws(PartitionTableError) -> PartitionTable {
        guard disk.size >= 512 else { throw .none }
        let boot = BootSector(try disk.bytes(at: 0, count: 512))
        guard boot.isTable else {
            if let size = try GPTReader.firstHeader(in: &disk) { throw .unprotected(sectorSize: size) }
            throw .none
        }
        var table: PartitionTable
        if boot.isProtective {
            table = try GPTReader.read(&disk, preferred: sectorSize)
        } else {
            table = try readMBR(&disk, boot, sectorSize ?? 512)
            if try GPTReader.firstHeader(in: &disk) != nil {
                table.notes.append(
                    "a GPT is there, too, which does not count: the MBR has no partition of type ee for it")
            }
        }
        return table
    }

    /// Nothing in an MBR says in which sectors it counts. Almost all count in 512 bytes: where that is right, and the size that
    /// was given is not, the user meant the blocks of the device.
    private static func readMBR(
        _ disk: inout some DiskContent, _ boot: BootSector, _ sectorSize: UInt64
    ) throws(PartitionTableError) -> PartitionTable {
        var failure: PartitionTableError?
        do throws(PartitionTableError) {
            let table = try MBRReader.read(&disk, boot, sectorSize: sectorSize)
            if sectorSize == 512 || table.isSound { return table }
        } catch {
            guard sectorSize != 512, case .damaged = error else { throw error }
            failure = error
        }
        do throws(PartitionTableError) {
            var usual = try MBRReader.read(&disk, boot, sectorSize: 512)
            if usual.isSound {
                usual.notes.append(
                    "the MBR fits the file in sectors of 512 bytes, and not in sectors of \(sectorSize) bytes")
                return usual
            }
        } catch { guard case .damaged = error else { throw error } }
        if let failure { throw failure }
        return try MBRReader.read(&disk, boot, sectorSize: sectorSize)
    }

    /// No partition has a fault.
    private var isSound: Bool { partitions.allSatisfy { $0.fault == nil } }

    /// Finds partitions that end outside the disk, or have bytes in common.
    mutating func findFaults(diskSize: UInt64) {
        for index in partitions.indices where partitions[index].fault == nil {
            guard let end = partitions[index].end, end <= diskSize else {
                partitions[index].fault = "ends outside the file, which has \(diskSize) bytes"
                continue
            }
        }
        findOverlaps(partitions.indices.filter { !partitions[$0].isContainer })
        // A logical partition lies in its container, and a container beside the other primary partitions.
        if label == .dos { findOverlaps(partitions.indices.filter { partitions[$0].number < 5 }) }
    }

    /// In the order of their beginnings each is compared with the one that reaches farthest of those before it.
    private mutating func findOverlaps(_ indices: [Int]) {
        var farthest: Int?
        for index in indices.sorted(by: { partitions[$0].offset < partitions[$1].offset })
        where partitions[index].size > 0 && partitions[index].end != nil {
            if let other = farthest, partitions[index].offset < partitions[other].end ?? 0 {
                for (one, its) in [(index, other), (other, index)] where partitions[one].fault == nil {
                    partitions[one].fault = "overlaps partition \(partitions[its].number)"
                }
            }
            if (partitions[index].end ?? 0) > farthest.flatMap({ partitions[$0].end }) ?? 0 { farthest = index }
        }
    }
}
