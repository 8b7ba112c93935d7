import Glibc
import KernelABI
import SystemCalls
import Targets

/// A part of a request: sectors that are handled in the same way, with one submission at a time.
struct OverlayRun: BitwiseCopyable {
    enum Step: UInt8, BitwiseCopyable {
        case readBase, readLayer
        /// From /dev/zero, into pages that only the kernel can reach.
        case readZeros
        /// Over blocks that are in the layer.
        case write
        /// Whole blocks that are not in the layer: they are when it is done.
        case firstWrite
        /// A part of a block that is not in the layer: the block is read from the base,
        case copyRead
        /// written to the layer as it is, or as it is to be when the part is zeros,
        case copyWrite
        /// and then the part is written over it. Then it is in the layer.
        case copyData
        /// Zeros over a part of a block that is in the layer.
        case zeroPart
        /// Blocks that are zeros now: their space in the layer is given back.
        case punch
    }

    /// Its first sector, from the start of the request.
    var start: UInt32 = 0
    var sectors: UInt32 = 0
    /// Bytes that have moved in this step.
    var moved: UInt32 = 0
    var step = Step.readBase
    var retries: UInt8 = 0

    /// How often an interrupted submission is repeated.
    static let mostRetries: UInt8 = 16
}

/// A request, as it was when it came: the kernel's descriptor of it is in shared memory.
struct OverlayRequest: RequestState {
    /// 512-byte sectors.
    var start: UInt64 = 0
    var sectors: UInt32 = 0
    /// Sectors for which something has been begun.
    var begun: UInt32 = 0
    /// The first error, after which nothing more is begun.
    var errno: Int32 = 0
    var operation: UInt8 = 0
    /// Its runs that are under way, one bit each.
    var active: UInt8 = 0
    /// The block at `begun` is busy; it is in the queue's list.
    var waits = false
    /// Its block for a copy is in use.
    var usesBlock = false
    /// Its place on the board is in use.
    var usesBoard = false

    init() {}

    @inline(__always)
    init(_ descriptor: UblkIODescriptor) {
        start = descriptor.startSector
        sectors = descriptor.sectors
        operation = descriptor.operation
    }

    @inline(__always)
    var hasAllRuns: Bool { active == 0b1111 }

    /// There is more to begin.
    @inline(__always)
    var goesOn: Bool { begun < sectors && errno == 0 && !hasAllRuns }

    /// Nothing of it is under way, and nothing more will be begun.
    @inline(__always)
    var isOver: Bool { active == 0 && !waits && (begun == sectors || errno != 0) }
}

/// The memory of the one queue: for each block whether it is busy, for each request its runs and a block for copies, and the
/// requests that wait for a busy block, in their order.
///
/// A block is busy while it comes into the layer, and while its space there is given back. Meanwhile nobody else changes it.
struct OverlayWork: @unchecked Sendable {
    // Unchecked: pointers, which only the one queue uses.
    private let busy: UnsafeMutablePointer<UInt64>
    private let runs: UnsafeMutablePointer<OverlayRun>
    private let waiting: UnsafeMutablePointer<UInt16>
    private let blocks: UnsafeMutableRawPointer
    private(set) var waitingCount = 0

    /// `memory`: zeros, `BlockMap.workBytes` long, page-aligned.
    init(_ memory: UnsafeMutableRawPointer, depth: UInt16, blocks count: UInt64) {
        let perRequest = Int(Submissions.overlay.perRequest) * MemoryLayout<OverlayRun>.stride
        precondition(perRequest + MemoryLayout<UInt16>.stride <= Int(BlockMap.requestBytes))
        blocks = memory
        var next = memory + Int(depth) * Int(BlockMap.blockBytes)
        runs = next.assumingMemoryBound(to: OverlayRun.self)
        next += Int(depth) * perRequest
        busy = next.assumingMemoryBound(to: UInt64.self)
        next += Int((count + 63) / 64) * 8
        waiting = next.assumingMemoryBound(to: UInt16.self)
    }

    @inline(__always)
    func run(_ tag: UInt16, _ slot: UInt8) -> UnsafeMutablePointer<OverlayRun> {
        runs + (Int(tag) &* Int(Submissions.overlay.perRequest) &+ Int(slot))
    }

    /// The request's block for copies.
    @inline(__always)
    func block(of tag: UInt16) -> UnsafeMutableRawPointer { blocks + Int(tag) &* Int(BlockMap.blockBytes) }

    // MARK: Busy blocks

    @inline(__always)
    func isBusy(_ block: UInt64) -> Bool {
        busy[Int(truncatingIfNeeded: block >> 6)] & 1 << (block & 63) != 0
    }

    /// The first busy block of them; the end of the range when none is.
    func firstBusy(_ range: Range<UInt64>) -> UInt64 {
        var block = range.lowerBound
        while block < range.upperBound {
            if block & 63 == 0, busy[Int(block >> 6)] == 0 {
                block += 64
                continue
            }
            if isBusy(block) { return block }
            block += 1
        }
        return range.upperBound
    }

    @inline(__always)
    func setBusy(_ range: Range<UInt64>) { change(range) { $0 | $1 } }

    @inline(__always)
    func release(_ range: Range<UInt64>) { change(range) { $0 & ~$1 } }

    @inline(__always)
    private func change(_ range: Range<UInt64>, _ combine: (UInt64, UInt64) -> UInt64) {
        var block = range.lowerBound
        while block < range.upperBound {
            let bits = min(64 &- block & 63, range.upperBound &- block)
            let mask = (bits == 64 ? UInt64.max : 1 << bits &- 1) << (block & 63)
            let place = Int(block >> 6)
            busy[place] = combine(busy[place], mask)
            block &+= bits
        }
    }

    // MARK: Waiting requests

    mutating func wait(_ tag: UInt16) {
        waiting[waitingCount] = tag
        waitingCount += 1
    }

    /// Each waiting request in its order. `body` says whether it waits on.
    mutating func eachWaiting(_ body: (UInt16) -> Bool) {
        let count = waitingCount
        var kept = 0
        for index in 0..<count {
            let tag = waiting[index]
            guard body(tag) else { continue }
            waiting[kept] = tag
            kept += 1
        }
        waitingCount = kept
    }
}
