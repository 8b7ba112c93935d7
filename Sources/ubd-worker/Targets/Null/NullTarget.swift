import Glibc
import KernelABI
import Targets

/// A disk without memory: writes vanish, reads are zeros.
struct NullTarget: Target {
    typealias State = Request
    @inline(__always)
    static var submissions: Submissions { .null }

    let bounds: DiskBounds
    let readOnly: Bool
    /// The highest common operation: write, or read when the disk is read-only. All others are rare.
    private let lastCommon: UInt8

    init(bounds: DiskBounds, readOnly: Bool) {
        self.bounds = bounds
        self.readOnly = readOnly
        lastCommon = readOnly ? UblkIOOperation.read : UblkIOOperation.write
    }

    @inline(__always)
    mutating func begin(_ tag: UInt16, _ descriptor: UblkIODescriptor, on queue: inout Queue<NullTarget>) -> Outcome {
        let operation = descriptor.operation
        guard operation <= lastCommon, bounds.containsData(descriptor) else { return rare(tag, &queue) }
        if operation == UblkIOOperation.read {
            if queue.isZeroCopy || queue.requests[Int(tag)].dirty != 0 { return clear(tag, descriptor, &queue) }
            return .done(descriptor.sectors << 9)
        }
        // The kernel has copied the writer's bytes into the buffer; without this the next reader would get them.
        queue.requests[Int(tag)].dirty |= descriptor.sectors << 9
        return .done(descriptor.sectors << 9)
    }

    @inline(__always)
    mutating func finish(_ key: RequestKey, result: Int32, on queue: inout Queue<NullTarget>) -> Outcome {
        // The only submissions are the zeros of a zero-copy read.
        let length = queue.descriptors[Int(key.tag)].sectors << 9
        if UInt32(bitPattern: result) == length, queue.requests[Int(key.tag)].troubled == 0 { return .done(length) }
        return finishRare(key.tag, result, &queue)
    }

    @inline(never)
    private func finishRare(_ tag: UInt16, _ result: Int32, _ queue: inout Queue<NullTarget>) -> Outcome {
        let descriptor = queue.descriptors[Int(tag)]
        guard bounds.containsData(descriptor) else {
            queue.requests[Int(tag)].settle()
            return .failed(EIO)
        }
        return queue.continueZeroes(tag, result, length: descriptor.sectors << 9)
    }

    /// Everything but valid reads and writes.
    @inline(never)
    private mutating func rare(_ tag: UInt16, _ queue: inout Queue<NullTarget>) -> Outcome {
        let descriptor = queue.descriptors[Int(tag)]
        switch descriptor.operation {
        case UblkIOOperation.read: return .failed(EIO)
        case UblkIOOperation.write: return .failed(readOnly ? EROFS : EIO)
        case UblkIOOperation.flush: return .done(0)
        case UblkIOOperation.discard, UblkIOOperation.writeZeroes:
            if readOnly { return .failed(EROFS) }
            return bounds.contains(descriptor) ? .done(0) : .failed(EIO)
        default: return .failed(EOPNOTSUPP)
        }
    }

    /// A read whose buffer is not all zeros: it has data of an earlier write, or is the reader's own memory.
    @inline(never)
    private func clear(_ tag: UInt16, _ descriptor: UblkIODescriptor, _ queue: inout Queue<NullTarget>) -> Outcome {
        let length = descriptor.sectors << 9
        if queue.isZeroCopy {
            queue.pushZeroes(tag, from: 0, length: length)
            return .pending
        }
        memset(queue.bufferPointer(of: tag), 0, min(Int(queue.requests[Int(tag)].dirty), Int(queue.bufferStride)))
        queue.requests[Int(tag)].dirty = 0
        return .done(length)
    }
}
