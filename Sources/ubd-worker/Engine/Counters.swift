import CShims
import Glibc
import KernelABI
import Ring
import WorkerProtocol

/// The counters of a queue: words in a shared page (StatisticsPage), updated in place with plain loads and stores. A
/// common request costs four of them; rare events are counted out of line.
struct Counters {
    /// One request in this many is sampled, that is timed; never two at once.
    static let sampleInterval: UInt64 = 64

    /// This queue's part of the page.
    let words: UnsafeMutablePointer<UInt64>
    /// The request that is being sampled: its tag, or one of the three values below, which no tag has.
    private(set) var sampled: UInt32 = Counters.nothing
    /// `moveSample` is called at the end of the turn in which `taken` reaches this: the next request is to be sampled,
    /// or (0) the sampled one is done. One comparison per turn serves both.
    private var due: UInt64
    private var sampleBegan: UInt64 = 0
    /// The value of `taken` at the end of the last turn: requests are taken only in turns.
    private var takenBefore: UInt64 = 0
    /// The value of `taken` when this worker began.
    private let takenAtStart: UInt64
    private let clock: TickClock

    private static let nothing: UInt32 = .max
    /// The sampled request is done, and is committed at the end of this turn.
    private static let givenBack: UInt32 = .max - 1
    /// The next turn that begins a request samples it.
    private static let awaited: UInt32 = .max - 2

    /// `words`: the counts of a dead worker, or zeros. Counts of another layout are lost.
    init(words: UnsafeMutablePointer<UInt64>, clock: TickClock) {
        if ![0, StatisticsPage.layout].contains(words[StatisticsPage.Word.layout]) {
            words.update(repeating: 0, count: StatisticsPage.Word.count)
        }
        words[StatisticsPage.Word.layout] = StatisticsPage.layout
        self.words = words
        self.clock = clock
        due = .max
        // The kernel reissues the requests that the dead worker held.
        takenAtStart = (0..<8).reduce(0) { $0 &+ words[StatisticsPage.Word.requests + $1] }
        words[StatisticsPage.Word.taken] = takenAtStart
        takenBefore = takenAtStart
        if clock.isSteady { due = words[StatisticsPage.Word.taken] &+ Counters.sampleInterval }
    }

    /// Requests taken from the kernel.
    @inline(__always)
    var taken: UInt64 { words[StatisticsPage.Word.taken] }

    /// Whether this worker has taken a request.
    var hasTaken: Bool { taken != takenAtStart }

    /// Requests committed.
    var committed: UInt64 {
        (0..<8).reduce(0) { $0 &+ words[StatisticsPage.Word.requests + $1] }
    }

    @inline(__always)
    func take(_ count: UInt64) {
        words[StatisticsPage.Word.taken] &+= count
    }

    /// A read or write has moved all its bytes. `settle` counts everything else.
    @inline(__always)
    mutating func complete(_ tag: UInt16, _ descriptor: UblkIODescriptor, bytes: Int32) {
        // Read or write: 0 or 1. Masked, so that no value from the driver reaches beyond the page.
        let operation = Int(descriptor.operation & 1)
        words[StatisticsPage.Word.requests &+ operation] &+= 1
        words[StatisticsPage.Word.bytes &+ operation] &+= UInt64(UInt32(bitPattern: bytes))
        if UInt32(tag) == sampled { endSample() }
    }

    /// A request has ended that moved no data, or failed.
    @inline(never)
    mutating func settle(_ tag: UInt16, _ descriptor: UblkIODescriptor, _ outcome: Outcome) {
        let operation = Counters.operation(descriptor.operation)
        words[StatisticsPage.Word.requests + operation.rawValue] &+= 1
        let isRange = operation == .discard || operation == .writeZeroes
        if outcome.rawValue < 0 {
            // "Not supported" is no error of a range: the kernel writes the zeros itself, or skips the discard.
            if !isRange || outcome != .failed(EOPNOTSUPP) {
                words[StatisticsPage.Word.errors + operation.rawValue] &+= 1
            }
        } else if isRange {
            words[StatisticsPage.Word.bytes + operation.rawValue] &+= UInt64(descriptor.sectors) << 9
        }
        if UInt32(tag) == sampled { endSample() }
    }

    private static func operation(_ operation: UInt8) -> StatisticsPage.Operation {
        switch operation {
        case UblkIOOperation.read: .read
        case UblkIOOperation.write: .write
        case UblkIOOperation.flush: .flush
        case UblkIOOperation.discard: .discard
        case UblkIOOperation.writeZeroes: .writeZeroes
        default: .other
        }
    }

    // MARK: Turns

    /// A turn has handled its completions.
    @inline(__always)
    mutating func endTurn() {
        let taken = taken
        let came = taken &- takenBefore
        takenBefore = taken
        words[StatisticsPage.Word.turns] &+= 1
        if came != 0 {
            let size = (63 &- came.leadingZeroBitCount) & (StatisticsPage.batchSizes &- 1)
            words[StatisticsPage.Word.batchSizes &+ size] &+= 1
        }
        if taken >= due { moveSample() }
    }

    // MARK: Time

    /// A request that this turn begins is to be sampled.
    @inline(__always)
    var isSampleDue: Bool { sampled == Counters.awaited }

    /// Called at the beginning of the turn that begins the request.
    mutating func beginSample(_ tag: UInt16) {
        sampled = UInt32(tag)
        sampleBegan = ubd_ticks()
    }

    @inline(__always)
    private mutating func endSample() {
        sampled = Counters.givenBack
        due = 0
    }

    @inline(never)
    private mutating func moveSample() {
        guard sampled == Counters.givenBack else {
            sampled = Counters.awaited
            due = .max
            return
        }
        sampled = Counters.nothing
        due = taken &+ Counters.sampleInterval
        let ticks = ubd_ticks() &- sampleBegan
        // Two processors' clocks may differ a little: a negative time is dropped.
        guard ticks < 1 << 62 else { return }
        words[StatisticsPage.Word.latencies + StatisticsPage.Latency.index(units: clock.units(ticks))] &+= 1
    }
}

/// The length of a tick of the processor's own clock in `StatisticsPage.Latency.unit`s. Determined before the worker is
/// sealed.
struct TickClock: Equatable, Sendable {
    /// Units in 2^32 ticks; 0: not known, and no request is timed.
    let scale: UInt64

    var isSteady: Bool { scale != 0 }

    static let none = TickClock(scale: 0)

    func units(_ ticks: UInt64) -> UInt64 {
        let product = ticks.multipliedFullWidth(by: scale)
        return product.high >> 32 == 0 ? product.high << 32 | product.low >> 32 : .max
    }

    /// The processor's clock and the kernel's at one moment.
    struct Reading: Sendable {
        var ticks: UInt64
        /// Of CLOCK_MONOTONIC.
        var nanoseconds: UInt64

        /// Takes the closest of a few: the thread may be preempted between the two reads.
        static func now() -> Reading {
            var best: (reading: Reading, width: UInt64)?
            for _ in 0..<5 {
                let before = ubd_ticks()
                var time = timespec()
                clock_gettime(CLOCK_MONOTONIC, &time)
                let width = ubd_ticks() &- before
                if let best, best.width <= width { continue }
                best = (
                    Reading(
                        ticks: before &+ width / 2,
                        nanoseconds: UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)), width
                )
            }
            return best!.reading
        }
    }

    /// Nanoseconds between two readings that give the frequency precisely enough for classes of a factor of two.
    static let shortest: UInt64 = 1_000_000

    init(scale: UInt64) { self.scale = scale }

    /// The clock from two readings at least `shortest` apart.
    init(_ first: Reading, _ second: Reading) {
        let ticks = second.ticks &- first.ticks
        let nanoseconds = second.nanoseconds &- first.nanoseconds
        guard ticks > 0, ticks < 1 << 62, nanoseconds >= TickClock.shortest, nanoseconds < 1 << 40 else {
            self = .none
            return
        }
        let units = nanoseconds.multipliedFullWidth(by: 1 << 32)
        let divisor = ticks.multipliedReportingOverflow(by: StatisticsPage.Latency.unit)
        guard !divisor.overflow, units.high < divisor.partialValue else {
            self = .none
            return
        }
        scale = divisor.partialValue.dividingFullWidth(units).quotient
    }
}
