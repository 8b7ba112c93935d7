import Glibc
import KernelABI
import Ring
import SystemCalls
import WorkerProtocol

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

    /// Queues what this turn has given back so far. Only batch mode keeps a list of that.
    mutating func pushList()

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

    /// The queue can't go on. What earlier turns gave back was counted as that, so the driver must have it, too; and when it is the
    /// connection that is gone, so must it have what was answered before. Else a server that ends each connection with an answer
    /// would be asked the same for ever, and look as if it had been of use.
    mutating func giveBackLast() {
        guard queue.exitStatus == WorkerExit.connectionLost else { return }
        giveBackEnded()
        pushList()
    }

    /// Hands the last of that to the driver, before the process ends. Not the end itself, at which the compiler would destroy the
    /// queue: unmapping its memory kills.
    mutating func leave() {
        guard queue.exitStatus != 0 else { return }
        giveBackLast()
        _ = queue.ring.submit(waitingFor: 0)
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
