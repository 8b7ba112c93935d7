import Glibc
import KernelABI
import Ring
import SystemCalls

/// The loop of one queue, in every mode.
protocol RequestLoop: ~Copyable {
    associatedtype Served: Target
    var queue: Queue<Served> { get set }
    var target: Served { get set }

    /// Asks the kernel for requests on every tag, in one system call.
    mutating func fetchAll() throws(SystemError)

    /// Submits what was pushed, waits for at least one completion, and handles all that have arrived. Returns 0, or a
    /// negated errno after which the queue is unusable: the process must end then, and its replacement starts again.
    mutating func turn() -> Int

    /// The second half of a turn: handles all completions that have arrived, after a submission. Returns as `turn`
    /// does.
    mutating func handleCompletions() -> Int

    /// Gives a request back with what became of it, unless its target waits for something.
    mutating func settle(_ tag: UInt16, _ descriptor: UblkIODescriptor, _ outcome: Outcome)
}

extension RequestLoop where Self: ~Copyable {
    /// The driver has taken all fetches: starts the queue's own submissions, which the first turn submits.
    mutating func start() {
        if Served.submissions.hasSocket { queue.waitForEvent() }
        var target = target
        target.start(on: &queue)
        self.target = target
    }

    /// Gives back the requests that `Queue.complete` ended.
    @inline(__always)
    mutating func giveBackEnded() {
        if queue.ledger.endedCount != 0 { giveBackAllEnded() }
    }

    @inline(never)
    private mutating func giveBackAllEnded() {
        for index in 0..<queue.ledger.endedCount {
            let ended = queue.ledger.ended(index)
            queue.pending &-= 1
            settle(ended.tag, queue.descriptors[Int(ended.tag)], ended.outcome)
        }
        queue.ledger.forgetEnded()
    }
}

/// True for a wait that a stopped and continued process, or a shortage of memory, cut short: nothing is lost.
@inline(never)
func isPassing(_ status: Int) -> Bool {
    status == -Int(EINTR) || status == -Int(EAGAIN) || status == -Int(EBUSY)
}
