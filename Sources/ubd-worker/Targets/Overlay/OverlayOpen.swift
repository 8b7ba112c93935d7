import CShims
import Glibc
import KernelABI
import SystemCalls
import Targets
import WorkerProtocol

extension OverlayTarget: ServedTarget {
    static var manifest: TargetManifest { .overlay }

    /// Opens the target on the client's files: the layer, the map, and the base.
    static func open(
        _ launch: LaunchMessage, files: [ClientFile], kernel: KernelVersion, canWait: Bool
    ) throws(WorkerFailure) -> OpenTarget {
        let (layer, base) = (files[0], files[2])
        let block = launch.options.blockSize ?? 512
        try checkBlockSize(block, minimum: 512)
        guard let size = launch.options.size, let kind = launch.options.layerKind else {
            throw WorkerFailure(.geometry, errno: EINVAL)
        }
        let whole = size - size % UInt64(block)
        guard whole > 0 else { throw WorkerFailure(.smallerThanBlock, detail: UInt64(block)) }
        // The kernel keeps it, whatever becomes of this process.
        guard !base.isWritable else { throw WorkerFailure(.baseWritable) }
        try check(layer, kind, size)
        let map = try mapBlocks(files[1], size)
        let readOnly = launch.flags.contains(.readOnly)
        let target = OverlayTarget(
            bounds: DiskBounds(size: whole, maxIOBytes: launch.maxIOBytes), readOnly: readOnly,
            baseSectors: try baseSectors(base), baseIsBlockDevice: base.isBlockDevice,
            // The owner shares the open file and could set O_APPEND on it at any time.
            writeFlags: kernel >= KernelVersion(6, 9) ? IOUring.ReadWrite.noAppend : 0,
            zeroCopy: launch.flags.contains(.zeroCopy), map: map)
        var open = OpenTarget(
            served: target, geometry: geometry(whole, size, block, readOnly: readOnly),
            files: [layer.descriptor, base.descriptor])
        // The broker refuses a base that lies on a ublk disk: one worker would wait for another.
        if base.isBlockDevice {
            let number = UInt64(base.status.st_rdev)
            (open.geometry.backingMajor, open.geometry.backingMinor) = (ubd_major(number), ubd_minor(number))
        }
        // The disk that limits of I/O apply to. A layer in memory has none; and the base is not the device's alone.
        open.geometry.file =
            kind == .memory ? FileIdentity(device: base.identity.device, inode: .max) : layer.identity
        open.fileSizeLimit = BlockMap.layerBytes(disk: size)
        if readOnly {
            open.unneeded = [IOUring.Operation.write, IOUring.Operation.writeFixed, IOUring.Operation.futexWait]
        } else if canWait, kernel >= KernelVersion(6, 7), FileRanges(of: layer.descriptor).holes {
            do throws(SystemError) {
                open.ranges = try FileRangeWork(
                    file: layer.descriptor, dataFile: layer.descriptor, end: BlockMap.layerBytes(disk: size))
            } catch { throw WorkerFailure(.memory, errno: error.errno) }
        } else {
            open.unneeded = [IOUring.Operation.futexWait]
        }
        return open
    }

    /// No cache to flush: nothing is less stable than the layer.
    private static func geometry(_ size: UInt64, _ asked: UInt64, _ block: UInt32, readOnly: Bool) -> Geometry {
        let unit = UInt32(BlockMap.blockBytes)
        var geometry = Geometry(
            size: size, logicalBlock: block, physicalBlock: unit,
            attributes: readOnly ? [.readOnly, .buffered] : .buffered)
        if size != asked { geometry.attributes.insert(.sizeRoundedDown) }
        if !readOnly {
            geometry.discardGranularity = unit
            geometry.maxDiscardSectors = longestRange
            geometry.maxWriteZeroesSectors = longestRange
        }
        return geometry
    }

    /// 512-byte sectors: 256 MiB, whose 65536 states the queue changes in far less than a millisecond.
    private static let longestRange: UInt32 = 256 << 11

    /// A layer in memory was counted, so it has that size for ever. Of another one the owner pays the space.
    private static func check(_ layer: ClientFile, _ kind: LayerKind, _ size: UInt64) throws(WorkerFailure) {
        let bytes = BlockMap.layerBytes(disk: size)
        if kind == .memory { return try layer.checkIsSealedMemory(size: bytes) }
        let has = UInt64(clamping: layer.status.st_size)
        guard layer.isWritable, !layer.isBlockDevice, has == bytes else {
            throw WorkerFailure(.layerUnusable, detail: has)
        }
    }

    /// Maps the map, for good. All its pages are there at once, so that none has to be found while the device serves.
    private static func mapBlocks(_ file: ClientFile, _ size: UInt64) throws(WorkerFailure) -> LiveMap {
        let bytes = BlockMap.bytes(disk: size)
        try file.checkIsSealedMemory(size: bytes)
        let memory = mmap(
            nil, Int(bytes), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, file.descriptor, 0)
        guard let memory, memory != MAP_FAILED else { throw WorkerFailure(.memory, errno: errno) }
        return LiveMap(memory, blocks: BlockMap.blocks(disk: size))
    }

    private static func baseSectors(_ base: ClientFile) throws(WorkerFailure) -> UInt64 {
        guard base.isBlockDevice else { return (UInt64(max(0, base.status.st_size)) + 511) >> 9 }
        do { return try base.blockQuery(ubd_BLKGETSIZE64, UInt64(0)) >> 9 } catch {
            throw WorkerFailure(.geometry, errno: error.errno)
        }
    }
}
