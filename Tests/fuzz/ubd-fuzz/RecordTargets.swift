import BrokerInterface
import Varlink
import WorkerProtocol

@testable import ubd_broker

/// A record in /run/ubd/state that is read is the same after it was written and read again.
func testStateRecord(_ input: [UInt8]) {
    guard let record = DeviceRecord(bytes: input) else { return }
    let written = record.bytes
    let again = DeviceRecord(bytes: written)
    require(again == record, "\(record) became \(String(describing: again))")
    require(again?.bytes == written, "written differently the second time")
    if let worker = record.worker { require(worker.pid > 1, "\(worker)") }
    if let launch = record.launch {
        // What its next worker reads, in the layout that the record has.
        require(LaunchMessage(decoding: launch.encoded()) == launch, "\(launch)")
    }
    require(record.memoryBytes <= UInt64(Int64.max), "\(record)")
}

/// The page of a worker that lies, as the broker reads it: two bytes for the depth, then the words of its queues.
func testStatistics(_ input: [UInt8]) {
    var script = Script(input)
    let depth = max(1, script.next(UInt16.self) % 4097)
    var page = script.rest()
    // As the real one: never shorter than its queues.
    let queues = 2
    page += [UInt8](repeating: 0, count: max(0, queues * StatisticsPage.stride - page.count))
    var all: [Counts] = []
    page.withUnsafeBytes { raw in
        for queue in 0..<queues {
            let progress = StatisticsPage.read(raw.baseAddress!, queue: queue)
            require(progress.committed <= progress.taken, "\(progress)")
            let counts = Counts(depth: depth) { StatisticsPage.word(raw.baseAddress!, queue: queue, $0) }
            check(counts, depth)
            all.append(counts)
        }
    }
    // Sums and JSON take most of the time.
    guard isSample(input, oneIn: 32) else { return }
    let total = all.reduce(Counts(), +)
    require(total.since(total).read.requests == 0 && all[0].since(total).errors <= all[0].errors, "\(total)")
    // Not beyond what the wire carries, or clients would be told something else.
    let stats = DeviceStats(id: 0, generation: 1, since: 0, total: total, queues: all)
    let reply = StatsReply(latencyBounds: StatisticsPage.Latency.bounds, devices: [stats])
    let message = Reply(parameters: reply.json).message.dropLast()
    let read = try? StatsReply(parameters: Reply(message: Array(message)).parameters)
    require(read?.latencyBounds == reply.latencyBounds && read?.devices.first?.queues == all, "\(reply)")
    require(read?.devices.first?.total?.json == total.json, "\(total)")
}

private func check(_ counts: Counts, _ depth: UInt16) {
    require(counts.inFlight <= UInt64(depth), "\(counts.inFlight) requests of \(depth) in flight")
    for operation in [counts.read, counts.write, counts.flush, counts.discard, counts.writeZeroes] {
        require(operation.errors <= operation.requests, "\(operation)")
        require(max(operation.requests, operation.bytes) <= UInt64(Int64.max), "\(operation)")
    }
    require(counts.batchSizes.count <= StatisticsPage.batchSizes, "\(counts)")
    require(counts.latency.count <= StatisticsPage.Latency.classes && counts.latency.last != 0, "\(counts)")
}
