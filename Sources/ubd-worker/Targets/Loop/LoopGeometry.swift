import Glibc
import SystemCalls
import WorkerProtocol

/// The properties of the backing file, as the worker found them, which determine the disk.
struct BackingFile: Equatable, Sendable {
    /// Bytes.
    var size: UInt64
    var isBlockDevice = false
    /// The file can be written through this descriptor, and the device is not read-only.
    var writable = true
    /// Bytes; 512 for a regular file.
    var logicalBlock: UInt32 = 512
    /// The I/O size that the storage prefers, in bytes: a file's st_blksize, a device's physical block.
    var preferredBlock: UInt32 = 4096
    /// nil when there is no direct file, or when it does not support direct I/O.
    var direct: DirectNeeds?
    /// Direct I/O is safe on this file system.
    var isSafeDirectly = true
    /// The operations of fallocate(2) that the file's file system supports.
    var ranges = FileRanges.all
    /// A forced write is on stable storage when it completes. Not so on FUSE, which passes direct writes to its server
    /// without that flag, and on unknown file systems, which may lie on FUSE.
    var forcesWrites = true
    var major: UInt32 = 0
    var minor: UInt32 = 0
    /// Ranges of a regular file can be discarded and zeroed: the queues can wait for the range thread (Linux 6.7).
    var doesRanges = true
    /// The kernel discards blocks of a block device through a ring (Linux 6.12).
    var discardsBlocks = true
}

/// The disk for a backing file and the options of the launch message. Pure: no system call.
struct LoopPlan: Equatable, Sendable {
    var geometry: Geometry
    var direct: Bool
    var readOnly: Bool

    init(_ file: BackingFile, _ launch: LaunchMessage) throws(WorkerFailure) {
        if let asked = launch.options.blockSize {
            try checkBlockSize(asked, minimum: min(file.logicalBlock, 4096))
        }
        // Disk images are made for 512 bytes. A disk must not change with its host, whatever the file's direct I/O
        // needs.
        let logical = min(max(512, launch.options.blockSize ?? 0, file.logicalBlock), 4096)
        let obstacle = LoopPlan.obstacle(file, launch, block: logical)
        direct = obstacle == nil && !launch.options.buffered
        let needed = file.direct.map { LoopPlan.powerOfTwo(notAbove: $0.block) } ?? 0
        let physical = min(max(LoopPlan.powerOfTwo(notAbove: file.preferredBlock), needed, logical), 1 << 20)
        let size = try LoopPlan.size(file, launch, block: logical)
        geometry = Geometry(size: size.bytes, logicalBlock: logical, physicalBlock: physical)
        geometry.backingMajor = file.major
        geometry.backingMinor = file.minor
        if size.rounded { geometry.attributes.insert(.sizeRoundedDown) }
        if !direct { geometry.attributes.insert(.buffered) }
        if let obstacle, !launch.options.buffered {
            geometry.attributes.insert(.directRefused)
            geometry.directObstacle = obstacle
        }

        readOnly = launch.flags.contains(.readOnly) || !file.writable
        if readOnly { geometry.attributes.insert(.readOnly) }
        if !file.writable { geometry.attributes.insert(.fileReadOnly) }
        if !readOnly { allowWrites(file, launch) }
    }

    /// The reason why the disk's requests do not use the direct file; nil when all of them fit it.
    ///
    /// Either all of them use it, or none. The kernel does not keep direct writes and the page cache of one file
    /// coherent while both are written: a buffered write next to a direct one can leave the old data of both in a folio
    /// that is written later.
    private static func obstacle(
        _ file: BackingFile, _ launch: LaunchMessage, block: UInt32
    ) -> Geometry.DirectObstacle? {
        if !file.isSafeDirectly { return .fileSystem }
        guard let needs = file.direct, needs.block > 0 else { return .file }
        guard needs.block <= 4096, needs.block.nonzeroBitCount == 1 else { return .largeBlocks }
        if block < needs.block { return .blocks }
        if !launch.options.offset.isMultiple(of: UInt64(needs.block)) { return .offset }
        // Without a copy it is users' memory, which the block layer aligns to 512 bytes; the worker's own buffers are
        // page-aligned.
        return needs.memory <= (launch.flags.contains(.zeroCopy) ? 512 : 4096) ? nil : .memory
    }

    private mutating func allowWrites(_ file: BackingFile, _ launch: LaunchMessage) {
        geometry.attributes.insert(.volatileCache)
        // Without it the kernel lets a flush follow instead.
        if file.forcesWrites { geometry.attributes.insert(.fua) }
        if !file.isBlockDevice, !file.doesRanges { return }
        let block = geometry.logicalBlock
        // A file's holes consist of its own blocks; those of a disk that starts in mid-block are never aligned to them.
        let unit =
            file.isBlockDevice ? block : max(block, min(LoopPlan.powerOfTwo(notAbove: file.preferredBlock), 1 << 20))
        let aligned = launch.options.offset % UInt64(file.isBlockDevice ? file.logicalBlock : unit) == 0
        if file.isBlockDevice ? aligned : file.ranges.holes {
            // Otherwise the worker writes zeros: in limited ranges, so that none takes longer than a few seconds.
            geometry.maxWriteZeroesSectors = 64 << 11
        }
        if aligned, file.isBlockDevice ? file.discardsBlocks : file.ranges.holes {
            geometry.discardGranularity = unit
            geometry.maxDiscardSectors = Geometry.longestRangeSectors
        }
    }

    private static func size(
        _ file: BackingFile, _ launch: LaunchMessage, block: UInt32
    ) throws(WorkerFailure) -> (bytes: UInt64, rounded: Bool) {
        guard file.size > 0 else { throw WorkerFailure(.fileEmpty) }
        guard file.size <= UInt64(Int64.max) else { throw WorkerFailure(.geometry, errno: EFBIG, detail: file.size) }
        guard launch.options.offset < file.size else { throw WorkerFailure(.offsetBeyondEnd, detail: file.size) }
        let available = file.size - launch.options.offset
        let wanted = launch.options.size ?? available
        guard wanted <= available else { throw WorkerFailure(.sizeBeyondEnd, detail: available) }
        let bytes = wanted / UInt64(block) * UInt64(block)
        guard bytes > 0 else { throw WorkerFailure(.smallerThanBlock, detail: UInt64(block)) }
        return (bytes, bytes != wanted)
    }

    private static func powerOfTwo(notAbove value: UInt32) -> UInt32 {
        value == 0 ? 512 : 1 << (31 - UInt32(value.leadingZeroBitCount))
    }
}
