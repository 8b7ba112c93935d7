import Glibc
import SystemCalls
import Targets
import WorkerProtocol

extension NullTarget: ServedTarget {
    static var manifest: TargetManifest { .null }

    static func open(
        _ launch: LaunchMessage, files _: [ClientFile], kernel _: KernelVersion, canWait _: Bool
    ) throws(WorkerFailure) -> OpenTarget {
        try open(launch)
    }

    static func open(_ launch: LaunchMessage) throws(WorkerFailure) -> OpenTarget {
        let block = launch.options.blockSize ?? 512
        try checkBlockSize(block, minimum: 512)
        // The broker always sends the size: the manifest has a default.
        guard let asked = launch.options.size else { throw WorkerFailure(.geometry, errno: EINVAL) }
        guard asked <= UInt64(Int64.max) else { throw WorkerFailure(.sizeBeyondEnd, detail: UInt64(Int64.max)) }
        let size = asked / UInt64(block) * UInt64(block)
        guard size > 0 else { throw WorkerFailure(.smallerThanBlock, detail: UInt64(block)) }
        let readOnly = launch.flags.contains(.readOnly)
        var geometry = Geometry(
            size: size, logicalBlock: block, physicalBlock: max(block, 4096),
            attributes: readOnly ? .readOnly : [])
        if size != asked { geometry.attributes.insert(.sizeRoundedDown) }
        if !readOnly {
            geometry.discardGranularity = block
            geometry.maxDiscardSectors = Geometry.longestRangeSectors
            geometry.maxWriteZeroesSectors = Geometry.longestRangeSectors
        }
        let bounds = DiskBounds(size: size, maxIOBytes: launch.maxIOBytes)
        return OpenTarget(
            served: NullTarget(bounds: bounds, readOnly: readOnly), geometry: geometry, files: [],
            fileSizeLimit: nil)
    }
}
