import BrokerInterface
import SystemCalls
import WorkerProtocol

extension Broker {
    /// For each worker that begins to serve. When it counts as another version of ubd does there will be no statistics, and
    /// no watchdog.
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
    /// What each queue claims. `depth`: the requests that one can hold.
    func counts(depth: UInt16) -> [Counts] {
        (0..<queues).map { queue in
            Counts(depth: depth) { [unowned self] word in self.word(queue: queue, word) }
        }
    }
}

extension Counts {
    /// Reads one queue's words, whatever they are: no number is larger than the wire can carry, there are no more errors
    /// than requests, and no more requests in flight than the queue has room for.
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
        // In this order: what is given back was taken before.
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
