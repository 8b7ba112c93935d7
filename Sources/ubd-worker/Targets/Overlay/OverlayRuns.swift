import Glibc
import KernelABI
import Ring
import Targets

/// The submissions of a run, one after another, and what their completions mean.
extension OverlayTarget {
    /// Begins a run at the first sector that is not begun.
    @inline(__always)
    mutating func start(
        _ step: OverlayRun.Step, _ sectors: UInt32, _ tag: UInt16, on queue: inout Queue<OverlayTarget>
    ) {
        let request = queue.requests + Int(tag)
        let slot = UInt8(truncatingIfNeeded: (~request.pointee.active).trailingZeroBitCount)
        request.pointee.active |= 1 << slot
        var run = OverlayRun()
        run.start = request.pointee.begun
        run.sectors = sectors
        run.step = step
        request.pointee.begun &+= sectors
        work!.run(tag, slot).pointee = run
        submit(tag, slot, on: &queue)
    }

    /// Bytes of a run's present step.
    @inline(__always)
    func length(_ run: OverlayRun, _ tag: UInt16, on queue: borrowing Queue<OverlayTarget>) -> UInt32 {
        switch run.step {
        case .copyRead:
            // Where the base ends in mid-block, the rest of the block is zeros already.
            let first = firstSector(run, tag, on: queue) & ~(OverlayTarget.blockSectors &- 1)
            return UInt32(truncatingIfNeeded: min(OverlayTarget.blockSectors, baseSectors &- first)) << 9
        case .copyWrite: return UInt32(truncatingIfNeeded: BlockMap.blockBytes)
        default: return run.sectors << 9
        }
    }

    /// The first sector of a run, on the disk.
    @inline(__always)
    private func firstSector(_ run: OverlayRun, _ tag: UInt16, on queue: borrowing Queue<OverlayTarget>) -> UInt64 {
        queue.requests[Int(tag)].start &+ UInt64(run.start)
    }

    /// The blocks that a run is in.
    @inline(__always)
    private func blocks(_ run: OverlayRun, _ tag: UInt16, on queue: borrowing Queue<OverlayTarget>) -> Range<UInt64> {
        let first = firstSector(run, tag, on: queue)
        let end = first &+ UInt64(run.sectors)
        return first / OverlayTarget.blockSectors..<(end &+ OverlayTarget.blockSectors &- 1)
            / OverlayTarget.blockSectors
    }

    private static func head(_ operation: UInt8, _ file: Int32) -> UInt64 {
        SubmissionEntry.head(operation: operation, flags: IOUring.EntryFlags.fixedFile, file: file)
    }

    /// Submits the run's present step, from the bytes on that have moved.
    @inline(__always)
    private mutating func submit(_ tag: UInt16, _ slot: UInt8, on queue: inout Queue<OverlayTarget>) {
        let run = work!.run(tag, slot).pointee
        if run.step == .punch { return punch(tag, slot, on: &queue) }
        let first = firstSector(run, tag, on: queue)
        var address = queue.buffer(of: tag) &+ UInt64(run.start) << 9
        var offset = first << 9
        let block = UInt64(UInt(bitPattern: work!.block(of: tag)))
        let head: UInt64
        var flags: UInt32 = 0
        switch run.step {
        case .readBase, .readLayer:
            let file = run.step == .readBase ? OverlayTarget.base : OverlayTarget.layer
            head = OverlayTarget.head(zeroCopy ? IOUring.Operation.readFixed : IOUring.Operation.read, file)
        case .readZeros:
            head = RingFiles.zeroesHead
            // /dev/zero has no places.
            offset = 0
        case .write, .firstWrite, .copyData:
            head = OverlayTarget.head(
                zeroCopy ? IOUring.Operation.writeFixed : IOUring.Operation.write, OverlayTarget.layer)
            flags = writeFlags
        case .copyRead, .copyWrite:
            let isRead = run.step == .copyRead
            head = OverlayTarget.head(
                isRead ? IOUring.Operation.read : IOUring.Operation.write,
                isRead ? OverlayTarget.base : OverlayTarget.layer)
            flags = isRead ? 0 : writeFlags
            address = block
            offset = (first & ~(OverlayTarget.blockSectors &- 1)) << 9
        case .zeroPart, .punch:
            head = OverlayTarget.head(IOUring.Operation.write, OverlayTarget.layer)
            flags = writeFlags
            address = block
        }
        queue.push(
            .transfer(
                head: head, address: address &+ UInt64(run.moved), length: length(run, tag, on: queue) &- run.moved,
                offset: run.step == .readZeros ? 0 : offset &+ UInt64(run.moved), operationFlags: flags,
                userData: RequestKey(tag: tag, .data, slot: slot).rawValue, bufferIndex: tag))
    }

    /// All bytes of a step have moved.
    @inline(__always)
    mutating func moved(_ tag: UInt16, _ slot: UInt8, on queue: inout Queue<OverlayTarget>) {
        let run = work!.run(tag, slot)
        switch run.pointee.step {
        case .readBase, .readLayer, .readZeros, .write, .punch: end(tag, slot, on: &queue)
        case .firstWrite, .copyData: endInLayer(tag, slot, on: &queue)
        case .copyRead:
            if queue.requests[Int(tag)].operation != UblkIOOperation.write {
                let first = Int(firstSector(run.pointee, tag, on: queue) % OverlayTarget.blockSectors)
                memset(work!.block(of: tag) + first << 9, 0, Int(run.pointee.sectors) << 9)
            }
            next(.copyWrite, tag, slot, on: &queue)
        case .copyWrite:
            if queue.requests[Int(tag)].operation == UblkIOOperation.write {
                next(.copyData, tag, slot, on: &queue)
            } else {
                endInLayer(tag, slot, on: &queue)
            }
        case .zeroPart:
            queue.requests[Int(tag)].usesBlock = false
            end(tag, slot, on: &queue)
        }
    }

    private mutating func next(
        _ step: OverlayRun.Step, _ tag: UInt16, _ slot: UInt8, on queue: inout Queue<OverlayTarget>
    ) {
        let run = work!.run(tag, slot)
        run.pointee.step = step
        run.pointee.moved = 0
        run.pointee.retries = 0
        submit(tag, slot, on: &queue)
    }

    @inline(__always)
    private mutating func end(_ tag: UInt16, _ slot: UInt8, on queue: inout Queue<OverlayTarget>) {
        queue.requests[Int(tag)].active &= ~(1 << slot)
    }

    /// The run's data is in the layer: from now on the map says so.
    private mutating func endInLayer(_ tag: UInt16, _ slot: UInt8, on queue: inout Queue<OverlayTarget>) {
        map.set(blocks(work!.run(tag, slot).pointee, tag, on: queue), .layer)
        release(tag, slot, on: &queue)
    }

    /// Its blocks are no longer busy.
    private mutating func release(_ tag: UInt16, _ slot: UInt8, on queue: inout Queue<OverlayTarget>) {
        let run = work!.run(tag, slot).pointee
        work!.release(blocks(run, tag, on: queue))
        hasReleased = true
        if run.step == .punch {
            queue.requests[Int(tag)].usesBoard = false
        } else if run.step != .firstWrite {
            queue.requests[Int(tag)].usesBlock = false
        }
        end(tag, slot, on: &queue)
    }

    // MARK: What is rare

    /// A step that did not move all of its bytes: it continues where it stopped, or ends the request with an error.
    @inline(never)
    mutating func movedLess(_ tag: UInt16, _ slot: UInt8, _ result: Int32, on queue: inout Queue<OverlayTarget>) {
        let run = work!.run(tag, slot)
        let left = length(run.pointee, tag, on: queue) - run.pointee.moved
        switch result {
        case 1...:
            guard UInt32(result) < left else { return fail(tag, slot, EIO, on: &queue) }
            run.pointee.moved += UInt32(result)
            run.pointee.retries = 0
        case -EINTR, -EAGAIN:
            run.pointee.retries += 1
            // EAGAIN does not end when the owner has set O_NONBLOCK on the shared open file.
            if run.pointee.retries > OverlayRun.mostRetries { return fail(tag, slot, EIO, on: &queue) }
        case 0:
            // The base has become shorter: what is missing reads as zeros, as a hole does. A layer, or a disk, never does.
            switch run.pointee.step {
            case .copyRead where !baseIsBlockDevice:
                // The block was zeros before.
                return moved(tag, slot, on: &queue)
            case .readBase where !baseIsBlockDevice:
                if !zeroCopy {
                    let done = Int(run.pointee.start) << 9 + Int(run.pointee.moved)
                    memset(queue.bufferPointer(of: tag) + done, 0, Int(left))
                    return moved(tag, slot, on: &queue)
                }
                run.pointee.step = .readZeros
            default: return fail(tag, slot, EIO, on: &queue)
            }
        default: return fail(tag, slot, Outcome.told(-result), on: &queue)
        }
        submit(tag, slot, on: &queue)
    }

    /// The run ends with an error, which is the request's when it is the first. Blocks on their way into the layer stay where they
    /// were: what was written of them is not looked at.
    private mutating func fail(
        _ tag: UInt16, _ slot: UInt8, _ errno: Int32, on queue: inout Queue<OverlayTarget>
    ) {
        if queue.requests[Int(tag)].errno == 0 { queue.requests[Int(tag)].errno = errno }
        switch work!.run(tag, slot).pointee.step {
        case .firstWrite, .copyRead, .copyWrite, .copyData: release(tag, slot, on: &queue)
        case .zeroPart:
            queue.requests[Int(tag)].usesBlock = false
            end(tag, slot, on: &queue)
        case .readBase, .readLayer, .readZeros, .write, .punch: end(tag, slot, on: &queue)
        }
    }

    /// The blocks are zeros by the map; the range thread gives their space back.
    private mutating func punch(_ tag: UInt16, _ slot: UInt8, on queue: inout Queue<OverlayTarget>) {
        guard let board = queue.board else { return }
        let blocks = blocks(work!.run(tag, slot).pointee, tag, on: queue)
        board.ask(
            .discard, queue: queue.number, tag: tag, offset: blocks.lowerBound * BlockMap.blockBytes,
            bytes: UInt64(blocks.count) * BlockMap.blockBytes)
        queue.wait(for: board, tag, slot: slot)
    }

    /// The wait for the range thread has ended. False: not the thread's work. Whether it could give the space back makes no
    /// difference to what is read.
    @inline(never)
    mutating func punched(_ tag: UInt16, _ slot: UInt8, on queue: inout Queue<OverlayTarget>) -> Bool {
        guard let board = queue.board else { return false }
        guard board.result(queue: queue.number, tag: tag) != nil else {
            queue.wait(for: board, tag, slot: slot)
            return false
        }
        release(tag, slot, on: &queue)
        return true
    }
}
