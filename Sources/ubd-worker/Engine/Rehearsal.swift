import Glibc
import KernelABI
import Ring
import SystemCalls
import Targets

/// The engine without a device, for Benchmarks/engine: commands are NOPs, so that every commit brings the next request
/// at once, and this function writes the descriptors. Loop and targets are the real ones. It is in their module,
/// because the compiler specialises the loop only there. The worker never calls it.
///
/// Handles reads of 4 KiB, or writes, on `depth` tags until `requests` have been committed; returns their number.
/// `file`: loop's, at least `depth` × 4 KiB long; nbd's connection to a server that has as much.
public func rehearse(
    _ target: TargetManifest, depth: UInt16, requests: UInt64, writes: Bool = false, file: Int32 = -1
) throws(SystemError) -> UInt64 {
    let bounds = DiskBounds(size: UInt64(depth) * UInt64(rehearsedBytes), maxIOBytes: rehearsedBytes)
    let work = Rehearsed(depth: depth, requests: requests, writes: writes, file: file)
    switch target {
    case .null: return try rehearse(NullTarget(bounds: bounds, readOnly: false), work)
    case .nbd:
        let rules = NBDRules(
            [.hasFlags], bounds: bounds, minimumBlock: 1, maximumBlock: 32 << 20, readOnly: false, writeThrough: false)
        return try rehearse(NBDTarget(rules), work)
    default:
        let loop = LoopTarget(
            start: 0, bounds: bounds, readOnly: false, isBlockDevice: false, direct: false, writeFlags: 0)
        return try rehearse(loop, work)
    }
}

private let rehearsedBytes: UInt32 = 4096

private struct Rehearsed {
    var depth: UInt16
    var requests: UInt64
    var writes: Bool
    var file: Int32
}

private func rehearse<T: Target>(_ target: T, _ work: Rehearsed) throws(SystemError) -> UInt64 {
    var target = target
    let (bytes, depth, file) = (rehearsedBytes, work.depth, work.file)
    let entries = T.submissions.ringEntries(depth: depth)
    var ring = try Ring(
        entries: entries, completions: entries * 2, flags: SealedRing.flags & ~IOUring.Setup.disabled)
    var socket: SocketRing?
    if T.submissions.hasSocket {
        let event = try makeEvent()
        var second = try Ring(
            entries: T.submissions.socketRingEntries, completions: T.submissions.socketRingEntries * 2,
            flags: SealedRing.flags & ~IOUring.Setup.disabled & ~IOUring.Setup.deferTaskRun)
        try second.register(files: [file])
        try second.register(event: event.raw)
        try second.registerIndex()
        second.closeDescriptor()
        socket = SocketRing(second)
        try ring.register(files: [event.raw, event.raw])
    } else if file >= 0 {
        try ring.register(files: [file, file])
    }
    try ring.registerIndex()
    ring.closeDescriptor()
    let nop = SubmissionEntry.head(operation: IOUring.Operation.nop, flags: 0, file: -1)
    let first = TickClock.Reading.now()
    usleep(2 * UInt32(TickClock.shortest / 1000))
    var queue = try Queue<T>(
        number: 0, depth: depth, maxIOBytes: bytes, ring: ring, commandHead: nop,
        clock: TickClock(first, TickClock.Reading.now()), socket: socket)
    try target.prepare(on: &queue)
    let operation = work.writes ? UblkIOOperation.write : UblkIOOperation.read
    for tag in 0..<Int(depth) {
        queue.ownDescriptors[tag] = UblkIODescriptor(
            operationAndFlags: UInt32(operation), sectors: bytes >> 9,
            startSector: UInt64(tag) * UInt64(bytes >> 9))
    }
    return try turn(QueueLoop(queue: queue, target: target), work.requests)
}

private func turn<T: Target>(_ loop: consuming QueueLoop<T>, _ requests: UInt64) throws(SystemError) -> UInt64 {
    try loop.queue.fetchAll()
    loop.start()
    while loop.queue.counters.committed < requests {
        let status = loop.turn()
        if status < 0 { throw SystemError("turn", Int32(-status)) }
    }
    return loop.queue.counters.committed
}
