import CShims
import Glibc
import KernelABI
import Ring

/// Everything but a read or write that completes at the first try: out of line, so that the common path stays small.
extension LoopTarget {
    /// Flush, discard and write-zeroes, as the kernel's own loop driver does them (drivers/block/loop.c), and invalid
    /// reads and writes.
    @inline(never)
    mutating func beginRare(_ tag: UInt16, on queue: inout Queue<LoopTarget>) -> Outcome {
        let descriptor = queue.descriptors[Int(tag)]
        let key = RequestKey(tag: tag, .control).rawValue
        let file = LoopTarget.bufferedFile
        switch descriptor.operation {
        case UblkIOOperation.read: return .failed(EIO)
        case UblkIOOperation.write: return .failed(readOnly ? EROFS : EIO)
        case UblkIOOperation.flush:
            // A read-only disk has no write cache, so it gets no flush; if one comes there is nothing to do.
            if readOnly { return .done(0) }
            queue.push(.syncData(file: file, userData: key))
        case UblkIOOperation.discard, UblkIOOperation.writeZeroes:
            if readOnly { return .failed(EROFS) }
            guard bounds.contains(descriptor) else { return .failed(EIO) }
            if !isBlockDevice, queue.board == nil { return .failed(EOPNOTSUPP) }
            if queue.ranges.begin(tag) { submitRange(tag, descriptor, on: &queue) }
        default:
            return .failed(EOPNOTSUPP)
        }
        return .pending
    }

    /// A discard or write-zeroes.
    private func submitRange(_ tag: UInt16, _ descriptor: UblkIODescriptor, on queue: inout Queue<LoopTarget>) {
        let key = RequestKey(tag: tag, .control).rawValue
        let file = LoopTarget.bufferedFile
        let offset = start &+ descriptor.startSector << 9
        // It was checked on arrival. If it has changed since, the length becomes 0, and the kernel refuses it.
        let bytes = bounds.contains(descriptor) ? UInt64(descriptor.sectors) << 9 : 0
        if isBlockDevice, descriptor.operation == UblkIOOperation.discard {
            queue.push(.discardBlocks(file: file, offset: offset, bytes: bytes, userData: key))
        } else if isBlockDevice {
            // On a block device no mode can allocate.
            let mode = FALLOC_FL_KEEP_SIZE | (descriptor.mustNotUnmap ? FALLOC_FL_ZERO_RANGE : FALLOC_FL_PUNCH_HOLE)
            queue.push(.allocate(file: file, mode: Int32(mode), offset: offset, bytes: bytes, userData: key))
        } else if let board = queue.board {
            let isDiscard = descriptor.operation == UblkIOOperation.discard
            let kind: RangeBoard.Kind = isDiscard ? .discard : descriptor.mustNotUnmap ? .zeroAllocated : .zero
            queue.requests[Int(tag)].detour = .board
            board.ask(kind, queue: queue.number, tag: tag, offset: offset, bytes: bytes)
            queue.wait(for: board, tag)
        }
    }

    @inline(never)
    mutating func finishRare(_ key: RequestKey, result: Int32, on queue: inout Queue<LoopTarget>) -> Outcome {
        let request = queue.requests + Int(key.tag)
        request.pointee.troubled = 1
        let outcome: Outcome
        if let board = queue.board, request.pointee.detour == .board {
            // Whatever the result of the wait, only the result on the board counts.
            guard let result = board.result(queue: queue.number, tag: key.tag) else {
                queue.wait(for: board, key.tag)
                return .pending
            }
            outcome = rangeOutcome(result)
        } else {
            outcome =
                key.isKind(.data)
                ? continueData(key.tag, result, on: &queue) : continueControl(key.tag, result, on: &queue)
        }
        if outcome != .pending {
            request.pointee.settle()
            let operation = queue.descriptors[Int(key.tag)].operation
            let isRange = operation == UblkIOOperation.discard || operation == UblkIOOperation.writeZeroes
            if isRange, key.isKind(.control), let next = queue.ranges.end() {
                submitRange(next, queue.descriptors[Int(next)], on: &queue)
            }
        }
        return outcome
    }

    /// The result of a flush, discard or write-zeroes. An interrupted one is repeated: doing it twice is harmless.
    private mutating func continueControl(_ tag: UInt16, _ result: Int32, on queue: inout Queue<LoopTarget>) -> Outcome
    {
        switch result {
        case 0...: return .done(0)
        case -EINTR, -EAGAIN:
            guard queue.requests[Int(tag)].mayRepeat() else { return .failed(EIO) }
            let descriptor = queue.descriptors[Int(tag)]
            if descriptor.operation != UblkIOOperation.flush {
                submitRange(tag, descriptor, on: &queue)
                return .pending
            }
            return beginRare(tag, on: &queue)
        default: return rangeOutcome(result)
        }
    }

    private func rangeOutcome(_ result: Int32) -> Outcome {
        switch result {
        case 0...: .done(0)
        // "Not supported" makes the block layer write zeros itself, or stop discarding. EINVAL (a file system that
        // cannot do it at this alignment) and ENOSYS (a kernel that lacks it) mean the same.
        case -EINVAL, -ENOSYS: .failed(EOPNOTSUPP)
        default: .fileFailed(-result)
        }
    }

    /// A read or write that did not move all of its bytes at the first try: continues where it stopped, or ends as an
    /// error. Never passes a partial result on.
    private func continueData(_ tag: UInt16, _ result: Int32, on queue: inout Queue<LoopTarget>) -> Outcome {
        let request = queue.requests + Int(tag)
        let descriptor = queue.descriptors[Int(tag)]
        // The descriptor is in memory that is shared with the kernel, so it is checked again.
        let isRead = descriptor.operation == UblkIOOperation.read
        guard bounds.containsData(descriptor), isRead || !readOnly else { return .failed(EIO) }
        let length = descriptor.sectors << 9
        if request.pointee.detour == .zeroes { return queue.continueZeroes(tag, result, length: length) }
        guard request.pointee.moved < length else { return .failed(EIO) }
        switch result {
        case 1...:
            guard let isAll = request.pointee.moved(result, of: length) else { return .failed(EIO) }
            if isAll { return .done(length) }
            // The rest may not fit the direct file's alignment. A write tries all the same: pages that it left in the
            // page cache would disturb direct writes beside it.
            if isRead { request.pointee.detour = .buffered }
        case 0:
            // A block device that ends early has been unplugged: its data is lost, not zero.
            guard isRead, !isBlockDevice else { return .failed(EIO) }
            // The file has become shorter than the disk: the missing part reads as zeros, as a hole does.
            if queue.isZeroCopy {
                request.pointee.detour = .zeroes
                request.pointee.retries = 0
                queue.pushZeroes(tag, from: request.pointee.moved, length: length)
                return .pending
            }
            let moved = Int(request.pointee.moved)
            memset(queue.bufferPointer(of: tag) + moved, 0, Int(length) - moved)
            return .done(length)
        case -EINTR, -EAGAIN:
            guard request.pointee.mayRepeat() else { return .failed(EIO) }
        case -EINVAL where direct && request.pointee.detour == .none:
            // Another alignment is needed here: for an extent that the file system handles differently, or, without a
            // copy, for the user's own memory.
            request.pointee.detour = .buffered
        default:
            return .fileFailed(-result)
        }
        resubmit(tag, descriptor, on: &queue)
        return .pending
    }

    /// Submits the rest of a read or write.
    private func resubmit(_ tag: UInt16, _ descriptor: UblkIODescriptor, on queue: inout Queue<LoopTarget>) {
        let request = queue.requests + Int(tag)
        let isRead = descriptor.operation == UblkIOOperation.read
        let moved = request.pointee.moved
        queue.push(
            .transfer(
                head: request.pointee.detour == .none ? (isRead ? readHead : writeHead) : bufferedHead(isRead: isRead),
                address: queue.buffer(of: tag) + UInt64(moved), length: descriptor.sectors << 9 - moved,
                offset: start + descriptor.startSector << 9 + UInt64(moved),
                operationFlags: isRead ? 0 : writeFlags(descriptor), userData: RequestKey(tag: tag, .data).rawValue,
                bufferIndex: tag))
    }
}
