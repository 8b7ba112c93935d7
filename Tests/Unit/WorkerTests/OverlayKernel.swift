import Glibc
import KernelABI
import Synchronization
import SystemCalls
import Targets

@testable import Ring
@testable import Worker

/// Driver, files and kernel for one overlay: what is submitted completes at random, late, in any order, in part, or with an error;
/// and the worker is killed at random. A model knows what each sector must have.
///
/// No two requests that are under way have a sector in common when one of them changes it, as with a file system. They often have
/// a block in common.
struct OverlayKernel {
    static let depth: UInt16 = 16
    static let maxIOBytes: UInt32 = 64 << 9
    /// The last block is cut off.
    static let sectors = 40 * 8 + 3
    /// The base ends in mid-block, and in mid-sector.
    static let baseBytes = 250 * 512 - 100

    private struct Held {
        var descriptor: UblkIODescriptor
        var data: [UInt8]
        var failed = false
    }

    private var random: SplitMix
    let zeroCopy: Bool
    private let base: [UInt8]
    private let layer: UnsafeMutableRawPointer
    private let map: UnsafeMutableRawPointer
    /// Zero copy: the pages of each request.
    private let pages: UnsafeMutableRawPointer
    private var board: RangeBoard
    private var expected: [UInt8]
    /// A failed write leaves the old or the new.
    private var unknown = [Bool](repeating: false, count: sectors)
    private var held = [Held?](repeating: nil, count: Int(depth))
    private var underWay: [Submission] = []
    private(set) var brought = 0
    private(set) var kills = 0
    private(set) var copies = 0
    private(set) var ended: [Int32: Int] = [:]
    private(set) var mostRuns = 0
    private(set) var failure: String?

    static var layerBytes: Int { Int(BlockMap.layerBytes(disk: UInt64(sectors) << 9)) }

    init(seed: UInt64, zeroCopy: Bool) throws(SystemError) {
        random = SplitMix(state: seed)
        self.zeroCopy = zeroCopy
        base = TestFile.pattern(OverlayKernel.baseBytes, seed: 0x5a)
        expected = base + [UInt8](repeating: 0, count: OverlayKernel.sectors << 9 - base.count)
        // What was not written must not be read.
        layer = .allocate(byteCount: OverlayKernel.layerBytes, alignment: 4096)
        memset(layer, 0xee, OverlayKernel.layerBytes)
        let mapBytes = Int(BlockMap.bytes(disk: UInt64(OverlayKernel.sectors) << 9))
        map = .allocate(byteCount: mapBytes, alignment: 8)
        memset(map, 0, mapBytes)
        pages = .allocate(byteCount: Int(OverlayKernel.depth) * Int(OverlayKernel.maxIOBytes), alignment: 4096)
        board = try RangeBoard(queues: 1, depth: OverlayKernel.depth)
    }

    func deallocate() {
        layer.deallocate()
        map.deallocate()
        pages.deallocate()
    }

    private mutating func fail(_ text: String) {
        if failure == nil { failure = "request \(brought): \(text)" }
    }

    /// A worker that has just begun.
    mutating func worker() throws(SystemError) -> QueueLoop<OverlayTarget> {
        board = try RangeBoard(queues: 1, depth: OverlayKernel.depth)
        let size = UInt64(OverlayKernel.sectors) << 9
        let ring = try Ring(entries: 127, completions: 256, flags: SealedRing.flags & ~IOUring.Setup.disabled)
        var queue = try Queue<OverlayTarget>(
            number: 0, depth: OverlayKernel.depth, maxIOBytes: OverlayKernel.maxIOBytes, ring: ring,
            buffers: zeroCopy ? .registered() : .own, board: board)
        var target = OverlayTarget(
            bounds: DiskBounds(size: size, maxIOBytes: OverlayKernel.maxIOBytes), readOnly: false,
            baseSectors: UInt64(base.count + 511) / 512, baseIsBlockDevice: false, writeFlags: 0, zeroCopy: zeroCopy,
            map: LiveMap(map, blocks: BlockMap.blocks(disk: size)))
        try target.prepare(on: &queue)
        return QueueLoop(queue: queue, target: target)
    }

    mutating func run(requests: Int) throws(SystemError) {
        var loop = try worker()
        while brought < requests, failure == nil {
            bring(&loop)
            for _ in 0..<Int(random.next() % 8) { completeAny(&loop) }
            turn(&loop)
            if random.next() % 300 == 0 { loop = try replacement() }
        }
        drain(&loop)
        // All of it, by the device.
        for first in stride(from: 0, to: OverlayKernel.sectors, by: 64) where failure == nil {
            begin(&loop, 0, UblkIOOperation.read, first, min(64, OverlayKernel.sectors - first))
            drain(&loop)
        }
        let pending = loop.queue.pending
        if pending != 0 { fail("\(pending) requests are waited for") }
    }

    /// Everything under way ends.
    private mutating func drain(_ loop: inout QueueLoop<OverlayTarget>) {
        for _ in 0..<10_000 where failure == nil && held.contains(where: { $0 != nil }) {
            for _ in 0..<8 { completeAny(&loop) }
            turn(&loop)
        }
        if held.contains(where: { $0 != nil }) { fail("requests were never given back") }
    }

    /// The worker is killed. Of what is under way some has happened, and its requests are repeated by the next one.
    private mutating func replacement() throws(SystemError) -> QueueLoop<OverlayTarget> {
        kills += 1
        for submission in underWay where random.next() % 2 == 0 {
            perform(submission, bytes: Int(random.next() % UInt64(submission.length + 1)))
        }
        if random.next() % 2 == 0 { punch() }
        underWay = []
        var loop = try worker()
        for tag in 0..<OverlayKernel.depth {
            guard let request = held[Int(tag)] else { continue }
            held[Int(tag)]!.failed = false
            give(&loop, tag, request.descriptor, request.data)
        }
        turn(&loop)
        return loop
    }

    // MARK: The driver

    private mutating func bring(_ loop: inout QueueLoop<OverlayTarget>) {
        for _ in 0..<Int(random.next() % 4) {
            guard let tag = (0..<OverlayKernel.depth).first(where: { held[Int($0)] == nil }) else { return }
            let operations = [
                UblkIOOperation.read, UblkIOOperation.read, UblkIOOperation.write, UblkIOOperation.write,
                UblkIOOperation.write, UblkIOOperation.discard, UblkIOOperation.writeZeroes, UblkIOOperation.flush,
            ]
            var operation = operations[Int(random.next() % 8)]
            // Fewer, or there would be no first writes.
            if operation == UblkIOOperation.writeZeroes, random.next() % 2 == 0 { operation = UblkIOOperation.write }
            // Mostly small ones, so that many meet in one block.
            let most = random.next() % 4 == 0 ? 64 : 12
            let count = operation == UblkIOOperation.flush ? 0 : 1 + Int(random.next() % UInt64(most))
            let first = Int(random.next() % UInt64(OverlayKernel.sectors - count + 1))
            if operation != UblkIOOperation.flush, isTaken(first, count, operation) { continue }
            begin(&loop, tag, operation, first, count)
        }
    }

    private func isTaken(_ first: Int, _ count: Int, _ operation: UInt8) -> Bool {
        held.contains { request in
            guard let other = request?.descriptor, other.sectors > 0 else { return false }
            let bothRead = operation == UblkIOOperation.read && other.operation == UblkIOOperation.read
            let begin = Int(other.startSector)
            return !bothRead && first < begin + Int(other.sectors) && begin < first + count
        }
    }

    private mutating func begin(
        _ loop: inout QueueLoop<OverlayTarget>, _ tag: UInt16, _ operation: UInt8, _ first: Int, _ count: Int
    ) {
        let descriptor = UblkIODescriptor(
            operationAndFlags: UInt32(operation), sectors: UInt32(count), startSector: UInt64(first))
        let data =
            operation == UblkIOOperation.write
            ? TestFile.pattern(count << 9, seed: UInt8(truncatingIfNeeded: random.next())) : []
        held[Int(tag)] = Held(descriptor: descriptor, data: data)
        brought += 1
        give(&loop, tag, descriptor, data)
    }

    private mutating func give(
        _ loop: inout QueueLoop<OverlayTarget>, _ tag: UInt16, _ descriptor: UblkIODescriptor, _ data: [UInt8]
    ) {
        let memory = memory(loop, tag)
        memset(memory, 0xdb, Int(OverlayKernel.maxIOBytes))
        memory.copyMemory(from: data, byteCount: data.count)
        loop.queue.ownDescriptors[Int(tag)] = descriptor
        post(&loop, CompletionEntry(userData: RequestKey(tag: tag, .command).rawValue, result: 0, flags: 0))
    }

    private func memory(_ loop: borrowing QueueLoop<OverlayTarget>, _ tag: UInt16) -> UnsafeMutableRawPointer {
        zeroCopy ? pages + Int(tag) * Int(OverlayKernel.maxIOBytes) : loop.queue.bufferPointer(of: tag)
    }

    private func post(_ loop: inout QueueLoop<OverlayTarget>, _ completion: CompletionEntry) {
        let ring = loop.queue.ring.completionMemory
        let tail = ring.tail.pointee.load(ordering: .relaxed)
        ring.entries[Int(tail & ring.mask)] = completion
        ring.tail.pointee.store(tail &+ 1, ordering: .releasing)
    }

    private mutating func turn(_ loop: inout QueueLoop<OverlayTarget>) {
        if loop.handleCompletions() < 0 { fail("the loop ends") }
        for submission in loop.queue.ring.takePending() {
            if submission.operation == IOUring.Operation.uringCommand {
                committed(
                    loop, UInt16(submission.payload >> 16 & 0xffff), Int32(truncatingIfNeeded: submission.payload >> 32)
                )
            } else {
                underWay.append(submission)
            }
        }
        mostRuns = max(mostRuns, underWay.count)
    }

    private mutating func committed(_ loop: borrowing QueueLoop<OverlayTarget>, _ tag: UInt16, _ result: Int32) {
        guard let request = held[Int(tag)] else { return fail("tag \(tag) is given back twice") }
        held[Int(tag)] = nil
        ended[min(result, 1), default: 0] += 1
        let descriptor = request.descriptor
        let (first, count) = (Int(descriptor.startSector), Int(descriptor.sectors))
        let isData = descriptor.operation <= UblkIOOperation.write
        guard result == (isData ? Int32(count << 9) : 0) else {
            if !request.failed { fail("\(descriptor) ends with \(result)") }
            if descriptor.operation != UblkIOOperation.read {
                for sector in first..<(first + count) { unknown[sector] = true }
            }
            return
        }
        switch descriptor.operation {
        case UblkIOOperation.read: compare(UnsafeRawPointer(memory(loop, tag)), first, count)
        case UblkIOOperation.write: set(first, count, request.data)
        case UblkIOOperation.discard, UblkIOOperation.writeZeroes:
            set(first, count, [UInt8](repeating: 0, count: count << 9))
        default: break
        }
    }

    private mutating func set(_ first: Int, _ count: Int, _ data: [UInt8]) {
        expected.replaceSubrange(first << 9..<(first + count) << 9, with: data)
        for sector in first..<(first + count) { unknown[sector] = false }
    }

    private mutating func compare(_ memory: UnsafeRawPointer, _ first: Int, _ count: Int) {
        for sector in first..<(first + count) where !unknown[sector] {
            let isRight = expected.withUnsafeBytes {
                memcmp($0.baseAddress! + sector << 9, memory + (sector - first) << 9, 512) == 0
            }
            if !isRight { return fail("sector \(sector) is wrong") }
        }
    }

    // MARK: The kernel

    private mutating func punch() {
        let layer = layer
        _ = board.serveOnce { _, offset, bytes in
            guard offset + bytes <= UInt64(OverlayKernel.layerBytes) else { return -EIO }
            memset(layer + Int(offset), 0, Int(bytes))
            return 0
        }
    }

    private mutating func completeAny(_ loop: inout QueueLoop<OverlayTarget>) {
        guard !underWay.isEmpty else { return }
        let submission = underWay.remove(at: Int(random.next() % UInt64(underWay.count)))
        let tag = RequestKey(rawValue: submission.userData).tag
        if submission.operation == IOUring.Operation.futexWait {
            // A wait may end before there is a reason.
            if random.next() % 4 != 0 { punch() }
            return post(&loop, CompletionEntry(userData: submission.userData, result: -EAGAIN, flags: 0))
        }
        let length = Int(submission.length)
        let result: Int
        switch random.next() % 64 {
        case 0: result = -Int(EINTR)
        case 1 where random.next() % 8 == 0:
            result = -Int(submission.file == OverlayTarget.layer ? ENOSPC : EIO)
            held[Int(tag)]!.failed = true
        case 2..<10: result = 1 + Int(random.next() % UInt64(length))
        default: result = length
        }
        let moved = result > 0 ? perform(submission, bytes: result) : result
        post(&loop, CompletionEntry(userData: submission.userData, result: Int32(moved), flags: 0))
    }

    /// Does the first `bytes` of a submission; returns how many there were.
    @discardableResult
    private mutating func perform(_ submission: Submission, bytes: Int) -> Int {
        if submission.operation == IOUring.Operation.futexWait { return 0 }
        let isFixed =
            submission.operation == IOUring.Operation.readFixed || submission.operation == IOUring.Operation.writeFixed
        let memory =
            isFixed
            ? pages + Int(submission.bufferIndex) * Int(OverlayKernel.maxIOBytes) + Int(submission.address)
            : UnsafeMutableRawPointer(bitPattern: UInt(submission.address))!
        let offset = Int(submission.offset)
        if isFixed != zeroCopy { copies += 1 }
        switch (submission.operation, submission.file) {
        case (IOUring.Operation.readFixed, RingFiles.zeroes):
            memset(memory, 0, bytes)
            return bytes
        case (IOUring.Operation.read, OverlayTarget.base), (IOUring.Operation.readFixed, OverlayTarget.base):
            let count = max(0, min(bytes, base.count - offset))
            base.withUnsafeBytes { if count > 0 { memcpy(memory, $0.baseAddress! + offset, count) } }
            return count
        case (IOUring.Operation.read, OverlayTarget.layer), (IOUring.Operation.readFixed, OverlayTarget.layer):
            guard offset + bytes <= OverlayKernel.layerBytes else { break }
            memcpy(memory, layer + offset, bytes)
            return bytes
        case (IOUring.Operation.write, OverlayTarget.layer), (IOUring.Operation.writeFixed, OverlayTarget.layer):
            guard offset + bytes <= OverlayKernel.layerBytes else { break }
            memcpy(layer + offset, memory, bytes)
            return bytes
        default: break
        }
        fail("\(submission) is not what an overlay submits")
        return 0
    }
}
