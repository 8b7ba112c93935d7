import Glibc
import KernelABI
import Ring
import SystemCalls
import Targets

/// The engine without a device, for Benchmarks/engine: commands are NOPs, so that every commit brings the next request
/// at once, and this function writes the descriptors. Loop and targets are the real ones. It is in their module,
/// because the compiler specialises the loop only there. The worker never calls it.
///
/// Handles reads of 4 KiB on `depth` tags until `requests` have been committed; returns their number. `target`: null,
/// or loop. `file`: loop's, at least `depth` × 4 KiB long.
public func rehearse(
    _ target: TargetManifest, depth: UInt16, requests: UInt64, file: Int32 = -1
) throws(SystemError) -> UInt64 {
    let bounds = DiskBounds(size: UInt64(depth) * UInt64(rehearsedBytes), maxIOBytes: rehearsedBytes)
    if target == .null {
        return try rehearse(NullTarget(bounds: bounds, readOnly: false), depth: depth, requests: requests, file: file)
    }
    let loop = LoopTarget(
        start: 0, bounds: bounds, readOnly: false, isBlockDevice: false, direct: false, writeFlags: 0)
    return try rehearse(loop, depth: depth, requests: requests, file: file)
}

private let rehearsedBytes: UInt32 = 4096

private func rehearse<T: Target>(
    _ target: T, depth: UInt16, requests: UInt64, file: Int32
) throws(SystemError) -> UInt64 {
    let bytes = rehearsedBytes
    let entries = T.submissions.ringEntries(depth: depth)
    var ring = try Ring(
        entries: entries, completions: entries * 2, flags: SealedRing.flags & ~IOUring.Setup.disabled)
    if file >= 0 { try ring.register(files: [file, file]) }
    try ring.registerIndex()
    ring.closeDescriptor()
    let nop = SubmissionEntry.head(operation: IOUring.Operation.nop, flags: 0, file: -1)
    let first = TickClock.Reading.now()
    usleep(2 * UInt32(TickClock.shortest / 1000))
    let queue = try Queue<T>(
        number: 0, depth: depth, maxIOBytes: bytes, ring: ring, commandHead: nop,
        clock: TickClock(first, TickClock.Reading.now()))
    for tag in 0..<Int(depth) {
        queue.ownDescriptors[tag] = UblkIODescriptor(
            operationAndFlags: UInt32(UblkIOOperation.read), sectors: bytes >> 9,
            startSector: UInt64(tag) * UInt64(bytes >> 9))
    }
    return try turn(QueueLoop(queue: queue, target: target), requests)
}

private func turn<T: Target>(_ loop: consuming QueueLoop<T>, _ requests: UInt64) throws(SystemError) -> UInt64 {
    try loop.queue.fetchAll()
    while loop.queue.counters.committed < requests {
        let status = loop.turn()
        if status < 0 { throw SystemError("turn", Int32(-status)) }
    }
    return loop.queue.counters.committed
}
