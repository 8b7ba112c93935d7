import CShims
import Glibc
import KernelABI
import Ring

/// Everything but a read or write that ends at the first try: out of line, so that the common path stays small.
extension LoopTarget {
    /// Flush, discard and write-zeroes, as the kernel's own loop driver does them (drivers/block/loop.c), and reads and
    /// writes that can't be done.
    @inline(never)
    mutating func beginRare(_ tag: UInt16, on queue: inout Queue<LoopTarget>) -> Outcome {
        let descriptor = queue.descriptors[Int(tag)]
        let key = RequestKey(tag: tag, .control).rawValue
        let file = LoopTarget.bufferedFile
        switch descriptor.operation {
        case UblkIOOperation.read: return .failed(EIO)
        case UblkIOOperation.write: return .failed(readOnly ? EROFS : EIO)
        case UblkIOOperation.flush:
            // A read-only disk has no write cache, so none comes; if one does there is nothing to do.
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
        // Checked when it came; one that has changed since does nothing, and is refused by the kernel.
        let bytes = bounds.contains(descriptor) ? UInt64(descriptor.sectors) << 9 : 0
        if isBlockDevice, descriptor.operation == UblkIOOperation.discard {
            queue.push(.discardBlocks(file: file, offset: offset, bytes: bytes, userData: key))
        } else if isBlockDevice {
            // Nothing can be allocated there, whatever the mode.
            let mode = FALLOC_FL_KEEP_SIZE | (descriptor.mustNotUnmap ? FALLOC_FL_ZERO_RANGE : FALLOC_FL_PUNCH_HOLE)
            queue.push(.allocate(file: file, mode: Int32(mode), offset: offset, bytes: bytes, userData: key))
        } else if let board = queue.board {
            let isDiscard = descriptor.operation == UblkIOOperation.discard
            let kind: RangeBoard.Kind = isDiscard ? .discard : descriptor.mustNotUnmap ? .zeroAllocated : .zero
            queue.requests[Int(tag)].detour = .board
            board.ask(kind, queue: queue.number, tag: tag, offset: offset, bytes: bytes)
            waitForBoard(tag, board, on: &queue)
        }
    }

    /// The request's one submission: it completes when the thread that does the range has done it.
    private func waitForBoard(_ tag: UInt16, _ board: RangeBoard, on queue: inout Queue<LoopTarget>) {
        let (address, value) = board.waitingPoint(queue: queue.number, tag: tag)
        queue.push(
            .waitForWord(address: address, value: value, userData: RequestKey(tag: tag, .control).rawValue))
    }

    @inline(never)
    mutating func finishRare(_ key: RequestKey, result: Int32, on queue: inout Queue<LoopTarget>) -> Outcome {
        let request = queue.requests + Int(key.tag)
        request.pointee.troubled = 1
        let outcome: Outcome
        if let board = queue.board, request.pointee.detour == .board {
            // Whatever the wait came to, what counts is whether the range is done.
            guard let result = board.result(queue: queue.number, tag: key.tag) else {
                waitForBoard(key.tag, board, on: &queue)
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

    /// What a flush, discard or write-zeroes came to. One that was interrupted is begun anew: doing it twice is harmless.
    private mutating func continueControl(_ tag: UInt16, _ result: Int32, on queue: inout Queue<LoopTarget>) -> Outcome
    {
        switch result {
        case 0...: return .done(0)
        case -EINTR, -EAGAIN:
            let request = queue.requests + Int(tag)
            request.pointee.retries += 1
            if request.pointee.retries > Request.mostRetries { return .failed(EIO) }
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
        // "Not supported" makes the block layer write zeros itself, or stop discarding. A file system that can't do it at
        // this alignment says EINVAL, a kernel that lacks it ENOSYS: for us that is the same.
        case -EINVAL, -ENOSYS: .failed(EOPNOTSUPP)
        default: LoopTarget.failure(-result)
        }
    }

    /// The block layer passes few errors on to the writer; all others arrive as EIO. It has no word for a quota or for a
    /// limit of the file's size, but one for "no room", which is what both come to.
    private static func failure(_ errno: Int32) -> Outcome {
        .failed(errno == EDQUOT || errno == EFBIG ? ENOSPC : errno)
    }

    /// A read or write that did not move all of its bytes at the first try: goes on where it stopped, or ends as an
    /// error. Never passes a part on.
    private func continueData(_ tag: UInt16, _ result: Int32, on queue: inout Queue<LoopTarget>) -> Outcome {
        let request = queue.requests + Int(tag)
        let descriptor = queue.descriptors[Int(tag)]
        // The descriptor lies in memory that is shared with the kernel: checked before, checked again.
        let isRead = descriptor.operation == UblkIOOperation.read
        guard bounds.containsData(descriptor), isRead || !readOnly else { return .failed(EIO) }
        let length = descriptor.sectors << 9
        if request.pointee.detour == .zeroes { return queue.continueZeroes(tag, result, length: length) }
        guard request.pointee.moved < length else { return .failed(EIO) }
        switch result {
        case 1...:
            guard UInt32(result) <= length - request.pointee.moved else { return .failed(EIO) }
            request.pointee.moved += UInt32(result)
            if request.pointee.moved == length { return .done(length) }
            // What remains need not fit the direct file's alignment. A write tries all the same: what it left in the page
            // cache would get in the way of direct writes beside it.
            if isRead { request.pointee.detour = .buffered }
            request.pointee.retries = 0
        case 0:
            // A block device that ends early has been unplugged: its data is not zeros, it is gone.
            guard isRead, !isBlockDevice else { return .failed(EIO) }
            // The file has become shorter than the disk: what is not there reads as zeros, as in a hole.
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
            request.pointee.retries += 1
            // EAGAIN does not end when the owner has set O_NONBLOCK on the open file that he shares with us.
            if request.pointee.retries > Request.mostRetries { return .failed(EIO) }
        case -EINVAL where direct && request.pointee.detour == .none:
            // Alignment needs of the moment: an extent that the file system handles otherwise, or, without a copy, the
            // place of the data in the user's own memory.
            request.pointee.detour = .buffered
        default:
            return LoopTarget.failure(-result)
        }
        resubmit(tag, descriptor, on: &queue)
        return .pending
    }

    /// Submits what remains of a read or write.
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
