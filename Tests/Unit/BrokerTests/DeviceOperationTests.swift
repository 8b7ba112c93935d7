import Glibc
import KernelABI
import SystemCalls
import Testing

@testable import ubd_broker

@Suite("An operation on a device")
struct DeviceOperationTests {
    /// The intended table, one line for each phase: the next phase and the action for each event. `!`: refused.
    private static let table = """
                   step       time       command       commit        answer     kill       hurry       ended      late          abandon    finish
        fresh      running    !          !             !             !          !          -           !          !             over:free  over
        running    running    running    commanding    committing    !          killing    running     !          running:tell  over:free  over
        commanding !          !          !             !             running    !          commanding  !          commanding:tell leaving:wait !
        committing !          !          !             !             running    !          -           !          committing:tell leaving:wait !
        killing    !          !          !             !             !          !          killing     running    stuck:tell    over:free  !
        stuck      !          !          !             !             !          !          stuck       running    stuck:tell    over:free  over
        leaving    -          -          !             !             over:free  -          -           -          -             leaving:wait -
        over       -          -          -             -             !          -          -           -          -             over:free  -
        """

    private static func words(_ line: Substring) -> [String] { line.split(separator: " ").map(String.init) }

    private static func text(_ phase: OperationPhase, _ event: OperationEvent) -> String {
        let (next, effect) = phase.after(event)
        switch effect {
        case .proceed: return "\(next)"
        case .tell: return "\(next):tell"
        case .release: return "\(next):free"
        case .wait: return "\(next):wait"
        // Ignored and refused events change nothing.
        case .ignore: return next == phase ? "-" : "ignored, but \(next)"
        case .refuse: return next == phase ? "!" : "refused, but \(next)"
        }
    }

    @Test("goes from every phase with every event where the table says")
    func walksTheTable() {
        let lines = DeviceOperationTests.table.split(separator: "\n")
        let events = DeviceOperationTests.words(lines[0])
        #expect(events == OperationEvent.allCases.map { "\($0)" })
        #expect(lines.dropFirst().map { DeviceOperationTests.words($0)[0] } == OperationPhase.allCases.map { "\($0)" })
        for (phase, line) in zip(OperationPhase.allCases, lines.dropFirst()) {
            let expected = Array(DeviceOperationTests.words(line).dropFirst())
            let found = OperationEvent.allCases.map { DeviceOperationTests.text(phase, $0) }
            #expect(found == expected, "phase \(phase)")
        }
    }

    @Test("can end from every phase, and never goes on once the device was taken away")
    func ends() {
        for phase in OperationPhase.allCases {
            var reached: Set<OperationPhase> = [phase]
            var isGrowing = true
            while isGrowing {
                let next = reached.union(
                    reached.flatMap { from in OperationEvent.allCases.map { from.after($0).phase } })
                isGrowing = next != reached
                reached = next
            }
            #expect(reached.contains(.over), "\(phase)")
            if phase == .leaving || phase == .over { #expect(reached.isSubset(of: [.leaving, .over])) }
        }
    }

    @Test("kills no worker while START_DEV or END_USER_RECOVERY is in the kernel")
    func sparesWorker() {
        for event in [OperationEvent.kill, .hurry] {
            #expect(OperationPhase.committing.after(event).effect != .proceed)
            #expect(OperationPhase.leaving.after(event).effect != .proceed)
        }
        #expect(OperationPhase.committing.after(.abandon).effect == .wait)
    }

    // MARK: The class that follows the table

    fileprivate enum Step: CaseIterable {
        case first
        case second
        case third
    }

    /// A fake kernel of one device, and an operation on it.
    fileprivate final class Bench {
        let folder: String
        let loop: EventLoop
        let driver: Driver
        let kernel: FakeKernel
        let operation: DeviceOperation<Step>
        var log: [String] = []

        init(stopsAtFaults: Bool = true) throws {
            folder = try Host.temporaryFolder()
            loop = try EventLoop()
            let kernel = FakeKernel(loop: loop, nodes: folder)
            kernel.addDevice(0, generation: 1, state: .live, pid: 1)
            self.kernel = kernel
            driver = Driver { () throws(SystemError) in kernel }
            try driver.ready()
            operation = DeviceOperation(loop: loop, stopsAtFaults: stopsAtFaults)
        }

        deinit { Host.remove(folder) }

        func run(milliseconds: Int = 50) throws {
            loop.after(milliseconds: milliseconds) { [loop] in loop.stop() }
            try loop.run()
        }

        /// An owner that ends it when its events come out of order.
        func begin() {
            let end = { [unowned self] in
                log.append("disordered")
                operation.abandon { [unowned self] in log.append("released") }
            }
            operation.begin(.first, disordered: end) { [unowned self] step in log.append("\(step)") }
        }

        func worker() -> FakeWorker {
            let launch = WorkerLaunch(
                binary: 0, device: "/dev/ublkc0", uid: 1, gid: 1, processes: 1, mappedBytes: 1, openFiles: 1,
                oomScore: 0)
            return FakeWorker(
                launch, fault: nil, geometry: .init(size: 1 << 20, logicalBlock: 512, physicalBlock: 512), loop: loop,
                handler: { _ in })
        }
    }

    @Test("goes another way at once, or when the kernel has answered, and not at all once the device is taken away")
    func turns() throws {
        for isTaken in [false, true] {
            let bench = try Bench()
            bench.begin()
            bench.operation.turn { bench.log.append("at once") }
            bench.operation.command({ bench.driver.info(of: 0, $0) }) { _ in bench.log.append("answer") }
            bench.operation.turn { bench.log.append("other way") }
            bench.operation.turn { bench.log.append("too late") }
            #expect(bench.log == ["first", "at once"])
            if isTaken { bench.operation.abandon { bench.log.append("taken") } }
            try bench.run()
            #expect(bench.log == ["first", "at once", isTaken ? "taken" : "other way"])
            bench.operation.turn { bench.log.append("at the end") }
            #expect(bench.log.count == (isTaken ? 3 : 4))
            bench.operation.finish()
        }
    }

    @Test("runs its steps in the order of the list, and back where it is told to")
    func steps() throws {
        let bench = try Bench()
        bench.begin()
        bench.operation.next()
        bench.operation.go(to: .first)
        bench.operation.next()
        bench.operation.next()
        #expect(bench.log == ["first", "second", "first", "second", "third"])
        bench.operation.finish()
        bench.operation.go(to: .first)
        #expect(bench.log.count == 5)
    }

    @Test("whose device is taken away lets its command end, notes the answer, and begins nothing more")
    func abandonedInCommand() throws {
        let bench = try Bench()
        bench.begin()
        bench.operation.command(
            { bench.driver.stop(0, $0) }, late: { bench.log.append("late \($0.verdict)") },
            then: { _ in bench.log.append("next") })
        bench.operation.abandon { bench.log.append("released") }
        #expect(bench.log == ["first"])
        try bench.run()
        #expect(bench.log == ["first", "late done", "released"])
        #expect(bench.operation.phase == .over)
    }

    @Test("whose device is taken away in a pause is free at once, and the pause brings nothing")
    func abandonedInPause() throws {
        let bench = try Bench()
        bench.begin()
        bench.operation.wait(milliseconds: 1) { bench.log.append("time") }
        bench.operation.abandon { bench.log.append("released") }
        #expect(bench.log == ["first", "released"])
        try bench.run()
        #expect(bench.log == ["first", "released"])
    }

    @Test("whose device is taken away twice lets both go on, when its command has ended")
    func abandonedTwice() throws {
        let bench = try Bench()
        bench.begin()
        bench.operation.command({ bench.driver.stop(0, $0) }) { _ in bench.log.append("next") }
        bench.operation.abandon { bench.log.append("one") }
        bench.operation.abandon { bench.log.append("two") }
        #expect(bench.log == ["first"])
        try bench.run()
        #expect(bench.log == ["first", "one", "two"])
    }

    @Test("whose events come out of order sends nothing for them, and is ended by its owner, once")
    func disordered() throws {
        let bench = try Bench(stopsAtFaults: false)
        bench.kernel.hangsUntil[.stopDevice] = { bench.log.contains("disordered") }
        bench.begin()
        bench.operation.command({ bench.driver.stop(0, $0) }) { _ in bench.log.append("next") }
        bench.operation.command({ bench.driver.stop(1, $0) }) { _ in bench.log.append("second") }
        bench.operation.finish()
        #expect(bench.log == ["first"] && bench.operation.phase == .commanding)
        try bench.run()
        #expect(bench.log == ["first", "disordered", "released"] && bench.operation.phase == .over)
        #expect(bench.kernel.log == ["stopDevice 0"])
    }

    @Test("whose device was taken away before its owner hears of the disorder ends by that alone")
    func disorderedAndAbandoned() throws {
        let bench = try Bench(stopsAtFaults: false)
        bench.begin()
        bench.operation.command({ bench.driver.stop(0, $0) }) { _ in bench.log.append("next") }
        bench.operation.next()
        bench.operation.abandon { bench.log.append("taken") }
        try bench.run()
        #expect(bench.log == ["first", "taken"])
    }

    @Test("tells once that its worker does not die, and goes on when it has died after all")
    func stuck() throws {
        let bench = try Bench()
        let worker = bench.worker()
        worker.survivesKill = true
        bench.begin()
        bench.operation.kill(worker, milliseconds: 1, stuck: { bench.log.append("stuck") }) { bench.log.append("dead") }
        try bench.run()
        #expect(bench.log == ["first", "stuck"] && bench.operation.phase == .stuck)
        worker.die(.killed(signal: SIGKILL))
        #expect(bench.log == ["first", "stuck", "dead"] && bench.operation.phase == .running)
        try bench.run()
        #expect(bench.log.count == 3)
    }

    @Test("hurries a worker whose end a command waits for, and none that must live")
    func hurry() throws {
        let bench = try Bench()
        let (held, needed) = (bench.worker(), bench.worker())
        bench.begin()
        bench.operation.command({ bench.driver.stop(0, $0) }) { _ in }
        #expect(bench.operation.hurry(held) && held.signals == ["KILL"])
        try bench.run()
        bench.operation.commit({ bench.driver.start(0, worker: 1, $0) }) { _ in }
        #expect(!bench.operation.hurry(needed) && needed.signals == [])
        try bench.run()
        #expect(bench.operation.phase == .running)
    }

    @Test("is gone from memory when it is over")
    func isFreed() throws {
        let bench = try Bench()
        weak var owner: Bench.Owner?
        do {
            let made = Bench.Owner(bench.loop)
            owner = made
            made.begin()
            #expect(made.steps == 1)
        }
        #expect(owner != nil)
        owner?.operation.abandon()
        #expect(owner == nil)
    }
}

extension DeviceOperationTests.Bench {
    /// As with the broker's operations, only its own steps hold a reference to it.
    fileprivate final class Owner {
        let operation: DeviceOperation<DeviceOperationTests.Step>
        var steps = 0
        init(_ loop: EventLoop) { operation = DeviceOperation(loop: loop) }
        func begin() { operation.begin(.first, disordered: { [self] in steps = -1 }) { [self] _ in steps += 1 } }
    }
}
