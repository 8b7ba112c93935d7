import Glibc
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
}

extension RequestLoop where Self: ~Copyable {
    /// The driver has taken all fetches: starts the queue's own submissions, which the first turn submits.
    mutating func start() {
        if Served.submissions.hasSocket { queue.waitForEvent() }
        var target = target
        target.start(on: &queue)
        self.target = target
    }
}

/// True for a wait that a stopped and continued process, or a shortage of memory, cut short: nothing is lost.
@inline(never)
func isPassing(_ status: Int) -> Bool {
    status == -Int(EINTR) || status == -Int(EAGAIN) || status == -Int(EBUSY)
}
