import Glibc
import KernelABI
import WorkerProtocol

/// A disk without memory: writes vanish, reads are zeros.
struct NullTarget: Target {
    let bounds: DiskBounds
    let readOnly: Bool

    @inline(__always)
    mutating func begin(_ tag: UInt16, _ descriptor: UblkIODescriptor, on queue: inout Queue) -> Outcome {
        let operation = descriptor.operation
        if operation == UblkIOOperation.read {
            guard bounds.containsData(descriptor) else { return .failed(EIO) }
            if queue.requests[Int(tag)].dirty != 0 { wipe(tag, &queue) }
            return .done(descriptor.sectors << 9)
        }
        if operation == UblkIOOperation.write {
            if readOnly { return .failed(EROFS) }
            guard bounds.containsData(descriptor) else { return .failed(EIO) }
            // The kernel has copied the writer's bytes into the buffer, and would copy them out to the next reader.
            queue.requests[Int(tag)].dirty = max(queue.requests[Int(tag)].dirty, descriptor.sectors << 9)
            return .done(descriptor.sectors << 9)
        }
        return rare(operation, descriptor)
    }

    @inline(__always)
    mutating func finish(_ key: RequestKey, result: Int32, on queue: inout Queue) -> Outcome {
        // Nothing was submitted.
        .failed(EIO)
    }

    @inline(never)
    private func rare(_ operation: UInt8, _ descriptor: UblkIODescriptor) -> Outcome {
        switch operation {
        case UblkIOOperation.flush: return .done(0)
        case UblkIOOperation.discard, UblkIOOperation.writeZeroes:
            if readOnly { return .failed(EROFS) }
            return bounds.contains(descriptor) ? .done(0) : .failed(EIO)
        default: return .failed(EOPNOTSUPP)
        }
    }

    @inline(never)
    private func wipe(_ tag: UInt16, _ queue: inout Queue) {
        memset(queue.bufferPointer(of: tag), 0, Int(queue.requests[Int(tag)].dirty))
        queue.requests[Int(tag)].dirty = 0
    }
}

extension NullTarget {
    /// Bytes, when the launch message does not say.
    static let defaultSize: UInt64 = 250 << 30

    static func open(_ launch: LaunchMessage) throws(WorkerFailure) -> OpenTarget {
        let block = launch.blockSize == 0 ? 512 : launch.blockSize
        try checkBlockSize(block, minimum: 512)
        let asked = launch.size == 0 ? defaultSize : launch.size
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
            served: .null(NullTarget(bounds: bounds, readOnly: readOnly)), geometry: geometry, files: [],
            fileSizeLimit: nil)
    }
}
