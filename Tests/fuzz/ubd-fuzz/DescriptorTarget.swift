import Glibc
import KernelABI
import SystemCalls

@testable import Ring
@testable import Worker

/// The two loops, as far as they are driven here: with completions that were made, without any system call.
protocol DrivenLoop: ~Copyable {
    associatedtype Served: Target where Served.State == Request
    var queue: Queue<Served> { get set }
    var target: Served { get set }
    mutating func handleCompletions() -> Int
    /// The driver's side of requests that come: nil when this loop is told of each tag by its own completion.
    var tagBuffers: TagBuffers? { get }
}

extension QueueLoop: DrivenLoop where T.State == Request {
    var tagBuffers: TagBuffers? { nil }
}

extension BatchLoop: DrivenLoop where T.State == Request {
    var tagBuffers: TagBuffers? {
        TagBuffers(ring: batch.bufferRing, count: batch.buffers, elementBytes: batch.elementBytes)
    }
}

/// A loop that lives as long as the process: making a ring would be most of the work.
final class LoopBox<Loop: DrivenLoop & ~Copyable> {
    var loop: Loop
    var driver: Driver

    init(_ loop: consuming Loop, _ driver: Driver) {
        self.loop = loop
        self.driver = driver
    }

    func run(_ target: Loop.Served, _ disk: Disk, _ script: inout Script) {
        loop.target = target
        driver.run(&loop, disk, &script)
    }
}

/// A disk and what may be done with it.
struct Disk {
    /// Bytes into the file where it starts, and its size.
    var start: UInt64 = 0
    var size: UInt64 = 0
    var readOnly = false
    var isBlockDevice = false
    var direct = false
    var isNull = false
    let zeroCopy: Bool

    /// Not a whole number of pages, so that there is room behind each buffer in which nobody may write.
    static let maxIOBytes: UInt32 = 4608
}

/// Requests as the kernel would bring them, on both loops, both targets, with and without zero copy: any descriptors, any
/// results. No submission reaches beyond disk or buffer, and each request is given back exactly once.
func testDescriptors(_ input: [UInt8]) {
    var script = Script(input)
    let kind = script.next(UInt8.self)
    let shape = script.next(UInt8.self)
    var disk = Disk(zeroCopy: kind & 4 != 0)
    let sizes: [UInt64] = [512, 4096, 5120, 1 << 20, (1 << 41) + 512, UInt64(Int64.max) >> 1 & ~511]
    disk.size = sizes[Int(shape & 15) % sizes.count]
    disk.isNull = kind & 1 != 0
    if !disk.isNull { disk.start = [0, 512, 1 << 40, UInt64(Int64.max) >> 1 & ~511][Int(shape >> 4 & 3)] }
    disk.readOnly = shape & 0x80 != 0
    disk.isBlockDevice = kind & 8 != 0
    disk.direct = kind & 16 != 0
    let bounds = DiskBounds(size: disk.size, maxIOBytes: Disk.maxIOBytes)
    let null = NullTarget(bounds: bounds, readOnly: disk.readOnly)
    let loop = LoopTarget(
        start: disk.start, bounds: bounds, readOnly: disk.readOnly, isBlockDevice: disk.isBlockDevice,
        direct: disk.direct, writeFlags: 0, zeroCopy: disk.zeroCopy)
    let loops = disk.zeroCopy ? Loops.zeroCopy : Loops.copy
    switch (disk.isNull, kind & 2 != 0) {
    case (true, false): loops.null.run(null, disk, &script)
    case (true, true): loops.nullBatch.run(null, disk, &script)
    case (false, false): loops.loop.run(loop, disk, &script)
    case (false, true): loops.loopBatch.run(loop, disk, &script)
    }
}

/// All that are driven, made once.
private struct Loops {
    let null: LoopBox<QueueLoop<NullTarget>>
    let nullBatch: LoopBox<BatchLoop<NullTarget>>
    let loop: LoopBox<QueueLoop<LoopTarget>>
    let loopBatch: LoopBox<BatchLoop<LoopTarget>>

    nonisolated(unsafe) static let copy = make(zeroCopy: false)
    nonisolated(unsafe) static let zeroCopy = make(zeroCopy: true)

    private static func make(zeroCopy: Bool) -> Loops {
        do { return try Loops(zeroCopy: zeroCopy) } catch {
            // An io_uring is needed for its memory, though nothing is ever submitted to it.
            fatalError("ubd-fuzz: no ring: \(error)")
        }
    }

    private init(zeroCopy: Bool) throws(SystemError) {
        let bounds = DiskBounds(size: 512, maxIOBytes: 512)
        let target = LoopTarget(
            start: 0, bounds: bounds, readOnly: true, isBlockDevice: false, direct: false, writeFlags: 0)
        let null = NullTarget(bounds: bounds, readOnly: true)
        self.null = LoopBox(QueueLoop(queue: try Loops.queue(zeroCopy, NullTarget.self), target: null), Driver())
        nullBatch = LoopBox(try Loops.batch(null, zeroCopy), Driver())
        loop = LoopBox(QueueLoop(queue: try Loops.queue(zeroCopy, LoopTarget.self), target: target), Driver())
        loopBatch = LoopBox(try Loops.batch(target, zeroCopy), Driver())
    }

    private static func batch<T: Target>(_ target: T, _ zeroCopy: Bool) throws(SystemError) -> BatchLoop<T> {
        let batch = try Batch(queue: 0, depth: Driver.depth, zeroCopy: zeroCopy)
        var loop = BatchLoop(queue: try queue(zeroCopy, T.self), target: target, batch: batch)
        loop.pushPreparation()
        loop.queue.ring.taken = loop.queue.ring.tail
        return loop
    }

    private static func queue<T: Target>(_ zeroCopy: Bool, _ target: T.Type) throws(SystemError) -> Queue<T> {
        let depth = Driver.depth
        // It stays disabled: the kernel never looks at it.
        let ring = try Ring(
            entries: UInt32(depth) * 2, completions: UInt32(Driver.completions), flags: SealedRing.flags)
        let queue = try Queue<T>(
            number: 0, depth: depth, maxIOBytes: Disk.maxIOBytes, ring: ring,
            buffers: zeroCopy ? .registered() : .own, clock: TickClock(scale: 1 << 30))
        if !zeroCopy { for tag in 0..<depth { Driver.markEnd(of: queue.bufferPointer(of: tag)) } }
        return queue
    }
}
