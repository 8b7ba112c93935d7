import Glibc
import KernelABI
import Ring
import SystemCalls
import Targets

/// A disk whose content is a base that never changes, and a layer with what was written (docs/overlay.md). The map says of each
/// block where it is. One queue has it: it is one thread's, and needs no lock.
///
/// A request is cut into runs of blocks in the same state. Runs go side by side. A block comes into the layer whole: first its
/// data is there, then the map says so, then the request is answered. A worker that dies at any moment leaves a map that is right.
struct OverlayTarget: Target {
    typealias State = OverlayRequest
    @inline(__always)
    static var submissions: Submissions { .overlay }

    let bounds: DiskBounds
    let readOnly: Bool
    /// Sectors of the base; the last one may be cut off.
    let baseSectors: UInt64
    /// A block device that ends early is gone, and its data is not zeros.
    let baseIsBlockDevice: Bool
    /// IOUring.ReadWrite flags of every write.
    let writeFlags: UInt32
    /// The requests' data is where only the kernel reaches it.
    let zeroCopy: Bool
    let map: LiveMap
    /// The queue's own, from `prepare` on.
    var work: OverlayWork?
    /// A block is no longer busy since the waiting requests were last looked at.
    var hasReleased = false

    static let layer: Int32 = 1
    static let base: Int32 = 2
    /// 512-byte sectors of a block.
    static let blockSectors: UInt64 = BlockMap.blockBytes >> 9

    init(
        bounds: DiskBounds, readOnly: Bool, baseSectors: UInt64, baseIsBlockDevice: Bool, writeFlags: UInt32,
        zeroCopy: Bool, map: LiveMap
    ) {
        self.bounds = bounds
        self.readOnly = readOnly
        self.baseSectors = baseSectors
        self.baseIsBlockDevice = baseIsBlockDevice
        self.writeFlags = writeFlags
        self.zeroCopy = zeroCopy
        self.map = map
    }

    mutating func prepare(on queue: inout Queue<OverlayTarget>) throws(SystemError) {
        let bytes = BlockMap.workBytes(disk: map.blocks * BlockMap.blockBytes, depth: queue.depth)
        work = OverlayWork(try queue.hold(bytes: Int(bytes)), depth: queue.depth, blocks: map.blocks)
    }

    @inline(__always)
    mutating func begin(_ tag: UInt16, _ descriptor: UblkIODescriptor, on queue: inout Queue<OverlayTarget>) -> Outcome
    {
        let isData = descriptor.operation <= UblkIOOperation.write
        guard isData, bounds.containsData(descriptor), descriptor.sectors != 0,
            !readOnly || descriptor.operation == UblkIOOperation.read
        else { return beginRare(tag, descriptor, on: &queue) }
        return begin(OverlayRequest(descriptor), tag, on: &queue)
    }

    @inline(__always)
    private mutating func begin(
        _ request: OverlayRequest, _ tag: UInt16, on queue: inout Queue<OverlayTarget>
    ) -> Outcome {
        queue.requests[Int(tag)] = request
        advance(tag, on: &queue)
        if queue.requests[Int(tag)].waits { work!.wait(tag) }
        return outcome(tag, on: queue)
    }

    /// All that is no read or write of data.
    @inline(never)
    private mutating func beginRare(
        _ tag: UInt16, _ descriptor: UblkIODescriptor, on queue: inout Queue<OverlayTarget>
    ) -> Outcome {
        switch descriptor.operation {
        case UblkIOOperation.read: return bounds.containsData(descriptor) ? .done(0) : .failed(EIO)
        case UblkIOOperation.write:
            if readOnly { return .failed(EROFS) }
            return bounds.containsData(descriptor) ? .done(0) : .failed(EIO)
        // Nothing is less stable than the layer: it ends with the device, and outlives everything else.
        case UblkIOOperation.flush: return .done(0)
        case UblkIOOperation.discard, UblkIOOperation.writeZeroes:
            if readOnly { return .failed(EROFS) }
            guard bounds.contains(descriptor) else { return .failed(EIO) }
            return begin(OverlayRequest(descriptor), tag, on: &queue)
        default: return .failed(EOPNOTSUPP)
        }
    }

    @inline(__always)
    mutating func finish(_ key: RequestKey, result: Int32, on queue: inout Queue<OverlayTarget>) -> Outcome {
        let (tag, slot) = (key.tag, key.slot)
        let run = work!.run(tag, slot)
        if run.pointee.step == .punch {
            guard punched(tag, slot, on: &queue) else { return .pending }
        } else if UInt32(bitPattern: result) == length(run.pointee, tag, on: queue) &- run.pointee.moved {
            moved(tag, slot, on: &queue)
        } else {
            movedLess(tag, slot, result, on: &queue)
        }
        if !queue.requests[Int(tag)].waits {
            advance(tag, on: &queue)
            if queue.requests[Int(tag)].waits { work!.wait(tag) }
        }
        if hasReleased { resume(except: tag, on: &queue) }
        return outcome(tag, on: queue)
    }

    /// What a request ends with; pending while it does not.
    @inline(__always)
    private func outcome(_ tag: UInt16, on queue: borrowing Queue<OverlayTarget>) -> Outcome {
        let request = queue.requests[Int(tag)]
        guard request.isOver else { return .pending }
        if request.errno != 0 { return .failed(request.errno) }
        return .done(request.operation <= UblkIOOperation.write ? request.sectors << 9 : 0)
    }

    /// Begins what can be begun of a request.
    @inline(__always)
    private mutating func advance(_ tag: UInt16, on queue: inout Queue<OverlayTarget>) {
        let request = queue.requests + Int(tag)
        while request.pointee.goesOn {
            let goesOn =
                switch request.pointee.operation {
                case UblkIOOperation.read: read(tag, on: &queue)
                case UblkIOOperation.write: write(tag, on: &queue)
                default: zero(tag, on: &queue)
                }
            if !goesOn { return }
        }
    }

    /// Blocks are free again: the requests that waited for them go on, those that came first before the others. `own`: the request
    /// whose outcome the caller returns.
    @inline(never)
    private mutating func resume(except own: UInt16, on queue: inout Queue<OverlayTarget>) {
        hasReleased = false
        guard var work, work.waitingCount > 0 else { return }
        work.eachWaiting { tag in
            let request = queue.requests + Int(tag)
            let block = (request.pointee.start + UInt64(request.pointee.begun)) / OverlayTarget.blockSectors
            if request.pointee.errno == 0, self.work!.isBusy(block) { return true }
            request.pointee.waits = false
            advance(tag, on: &queue)
            if request.pointee.waits { return true }
            let outcome = outcome(tag, on: queue)
            if tag != own, outcome != .pending { queue.complete(tag, outcome) }
            return false
        }
        self.work = work
    }

    // MARK: Beginning runs. Each returns whether there may be more to begin at once.

    @inline(__always)
    private mutating func read(_ tag: UInt16, on queue: inout Queue<OverlayTarget>) -> Bool {
        let request = queue.requests + Int(tag)
        let at = request.pointee.start &+ UInt64(request.pointee.begun)
        let end = request.pointee.start &+ UInt64(request.pointee.sectors)
        let block = at / OverlayTarget.blockSectors
        let state = map.state(block)
        let last = (end &+ OverlayTarget.blockSectors &- 1) / OverlayTarget.blockSectors
        // The map's owner can change this block's state meanwhile: it counts as it was.
        var stop = min(map.end(of: state, from: block &+ 1, to: last) &* OverlayTarget.blockSectors, end)
        switch state {
        case .base where at < baseSectors:
            stop = min(stop, baseSectors)
            start(.readBase, UInt32(truncatingIfNeeded: stop &- at), tag, on: &queue)
        case .layer:
            start(.readLayer, UInt32(truncatingIfNeeded: stop &- at), tag, on: &queue)
        case .base, .zeros:
            let sectors = UInt32(truncatingIfNeeded: stop &- at)
            if zeroCopy {
                start(.readZeros, sectors, tag, on: &queue)
            } else {
                memset(queue.bufferPointer(of: tag) + Int(request.pointee.begun) << 9, 0, Int(sectors) << 9)
                request.pointee.begun &+= sectors
            }
        case .unknown: request.pointee.errno = EIO
        }
        return true
    }

    @inline(__always)
    private mutating func write(_ tag: UInt16, on queue: inout Queue<OverlayTarget>) -> Bool {
        let request = queue.requests + Int(tag)
        let at = request.pointee.start &+ UInt64(request.pointee.begun)
        let end = request.pointee.start &+ UInt64(request.pointee.sectors)
        let block = at / OverlayTarget.blockSectors
        if map.state(block) == .layer, !work!.isBusy(block) {
            let last = (end &+ OverlayTarget.blockSectors &- 1) / OverlayTarget.blockSectors
            let stop = min(map.end(of: .layer, from: block &+ 1, to: last) &* OverlayTarget.blockSectors, end)
            start(.write, UInt32(truncatingIfNeeded: stop &- at), tag, on: &queue)
            return true
        }
        return writeFirst(tag, at, end, on: &queue)
    }

    /// A write to a block that is not in the layer.
    @inline(never)
    private mutating func writeFirst(
        _ tag: UInt16, _ at: UInt64, _ end: UInt64, on queue: inout Queue<OverlayTarget>
    ) -> Bool {
        let request = queue.requests + Int(tag)
        let block = at / OverlayTarget.blockSectors
        if work!.isBusy(block) {
            request.pointee.waits = true
            return false
        }
        let state = map.state(block)
        guard state != .unknown else {
            request.pointee.errno = EIO
            return false
        }
        if at % OverlayTarget.blockSectors == 0, end >= self.end(of: block) {
            var next = block + 1
            while next < map.blocks, end >= self.end(of: next), !work!.isBusy(next), map.state(next) != .layer,
                map.state(next) != .unknown
            {
                next += 1
            }
            work!.setBusy(block..<next)
            let stop = min(next * OverlayTarget.blockSectors, end)
            start(.firstWrite, UInt32(stop - at), tag, on: &queue)
            return true
        }
        guard !request.pointee.usesBlock else { return false }
        let isBase = state == .base && block * OverlayTarget.blockSectors < baseSectors
        work!.setBusy(block..<(block + 1))
        copyUp(tag, UInt32(min(self.end(of: block), end) - at), reads: isBase, on: &queue)
        return true
    }

    /// Begins to bring a block into the layer of which the next `sectors` change.
    private mutating func copyUp(
        _ tag: UInt16, _ sectors: UInt32, reads: Bool, on queue: inout Queue<OverlayTarget>
    ) {
        queue.requests[Int(tag)].usesBlock = true
        // What the base does not have is zeros.
        memset(work!.block(of: tag), 0, Int(BlockMap.blockBytes))
        start(reads ? .copyRead : .copyWrite, sectors, tag, on: &queue)
    }

    /// A discard or write-zeroes: both read as zeros then. Whole blocks only change their state. Space need not be kept for zeros: a block that is not in the
    /// layer has none there either.
    @inline(never)
    private mutating func zero(_ tag: UInt16, on queue: inout Queue<OverlayTarget>) -> Bool {
        let request = queue.requests + Int(tag)
        let at = request.pointee.start + UInt64(request.pointee.begun)
        let end = request.pointee.start + UInt64(request.pointee.sectors)
        let block = at / OverlayTarget.blockSectors
        if work!.isBusy(block) {
            request.pointee.waits = true
            return false
        }
        if at % OverlayTarget.blockSectors == 0, end >= self.end(of: block) {
            let last = end == bounds.sectors ? map.blocks : end / OverlayTarget.blockSectors
            let range = block..<work!.firstBusy(block..<last)
            let gives = queue.board != nil && map.hasLayer(range)
            if gives, request.pointee.usesBoard { return false }
            map.set(range, .zeros)
            let sectors = UInt32(min(range.upperBound * OverlayTarget.blockSectors, end) - at)
            if gives {
                work!.setBusy(range)
                request.pointee.usesBoard = true
                start(.punch, sectors, tag, on: &queue)
            } else {
                request.pointee.begun += sectors
            }
            return true
        }
        let sectors = UInt32(min(self.end(of: block), end) - at)
        let state = map.state(block)
        let isBehindBase = state == .base && block * OverlayTarget.blockSectors >= baseSectors
        // The base may be longer for the next worker.
        if isBehindBase { map.set(block..<(block + 1), .zeros) }
        if state == .zeros || isBehindBase {
            request.pointee.begun += sectors
            return true
        }
        guard state != .unknown else {
            request.pointee.errno = EIO
            return false
        }
        guard !request.pointee.usesBlock else { return false }
        if state == .base {
            work!.setBusy(block..<(block + 1))
            copyUp(tag, sectors, reads: true, on: &queue)
        } else {
            request.pointee.usesBlock = true
            memset(work!.block(of: tag), 0, Int(BlockMap.blockBytes))
            start(.zeroPart, sectors, tag, on: &queue)
        }
        return true
    }

    /// The sector behind a block; the last one ends with the disk.
    @inline(__always)
    private func end(of block: UInt64) -> UInt64 {
        min((block &+ 1) &* OverlayTarget.blockSectors, bounds.sectors)
    }
}
