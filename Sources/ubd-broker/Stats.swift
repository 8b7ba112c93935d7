import BrokerInterface
import SystemCalls
import WorkerProtocol

extension Broker {
    /// Called when a worker begins to serve. A worker of a version with other counters has no statistics and no
    /// watchdog.
    func noteLayout(of device: ManagedDevice) {
        device.statistics?.readLayout()
        guard device.statistics?.isReadable == false else { return }
        Log.warning(
            "statistics-layout", ("device", "\(device.id)"), ("worker", "\(device.info.workerPid ?? 0)"))
    }
}

extension ManagedDevice {
    func stats(perQueue: Bool) -> DeviceStats {
        guard let statistics, statistics.isReadable else {
            return DeviceStats(id: id, generation: info.generation, since: nil, total: nil)
        }
        let queues = statistics.counts(depth: info.depth)
        return DeviceStats(
            id: id, generation: info.generation, since: statistics.since, total: queues.reduce(Counts(), +),
            queues: perQueue ? queues : nil)
    }
}

extension DeviceStatistics {
    /// The counters of each queue, unverified. `depth`: the number of tags per queue.
    func counts(depth: UInt16) -> [Counts] {
        (0..<queues).map { queue in
            Counts(depth: depth) { [unowned self] word in self.word(queue: queue, word) }
        }
    }
}

extension Counts {
    /// Reads one queue's words and limits them: no number exceeds what the wire can carry, errors do not exceed
    /// requests, and requests in flight do not exceed the depth.
    init(depth: UInt16, _ word: @escaping (Int) -> UInt64) {
        typealias Word = StatisticsPage.Word
        let number = { (index: Int) in min(word(index), UInt64(Int64.max)) }
        let operation = { (operation: StatisticsPage.Operation) in
            let requests = number(Word.requests + operation.rawValue)
            return OperationCount(
                requests: requests, bytes: number(Word.bytes + operation.rawValue),
                errors: min(number(Word.errors + operation.rawValue), requests))
        }
        let list = { (first: Int, count: Int) in
            let all = (first..<first + count).map(number)
            return Array(all.prefix((all.lastIndex { $0 != 0 } ?? -1) + 1))
        }
        // Read before `taken`: a request is taken before it is committed.
        let committed = (0..<8).reduce(UInt64(0)) { $0 &+ word(Word.requests + $1) }
        let taken = word(Word.taken)
        self.init(
            read: operation(.read), write: operation(.write), flush: operation(.flush), discard: operation(.discard),
            writeZeroes: operation(.writeZeroes),
            inFlight: taken > committed ? min(taken - committed, UInt64(depth)) : 0,
            wakeUps: number(Word.turns), batchSizes: list(Word.batchSizes, StatisticsPage.batchSizes),
            latency: list(Word.latencies, StatisticsPage.Latency.classes))
    }
}
