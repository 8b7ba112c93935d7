import CShims
import Glibc
import KernelABI
import SystemCalls
import Testing
import WorkerProtocol

@testable import Ring
@testable import Targets
@testable import Worker

/// The fault target over real files and the host's kernel.
@Suite("The fault target")
struct FaultTargetTests {
    private static let size = 1 << 19

    /// An empty control file.
    static func control() throws -> TestFile {
        let file = try TestFile(bytes: 0)
        try call("ftruncate") { ftruncate(file.file.raw, off_t(FaultControl.bytes)) }
        return file
    }

    private static func target(
        _ rules: String = "", seed: UInt64 = 1, cache: Int = 0, cutAfter: UInt64 = 0, keepsSome: Bool = false,
        readOnly: Bool = false
    ) throws -> FaultTarget {
        var plan = FaultPlan()
        plan.rules = try FaultPlan.rules(rules)
        (plan.seed, plan.cutAfter) = (seed, cutAfter)
        return FaultTarget(
            start: 4096, bounds: DiskBounds(size: UInt64(size), maxIOBytes: 65536), readOnly: readOnly, writeFlags: 0,
            cacheBlocks: cache, keepsSome: keepsSome, beginning: FaultTarget.Beginning(plan: plan))
    }

    private static func file() throws -> TestFile { try TestFile(bytes: size + 8192) }

    /// Begins the turn with the control file, and waits until that says so.
    private static func begin(_ queue: inout TestQueue<FaultTarget>) throws {
        queue.loop.start()
        for _ in 0..<5000 where !queue.loop.target.turn.isOnRecord {
            _ = try queue.read(sector: 0, sectors: 1)
            usleep(500)
        }
        try #require(queue.loop.target.turn.isOnRecord)
    }

    private static func block(_ file: borrowing TestFile, _ offset: Int) throws -> [UInt64] {
        var words = [UInt64](repeating: 0, count: FaultControl.words)
        let count = words.withUnsafeMutableBytes { pread(file.file.raw, $0.baseAddress, $0.count, off_t(offset)) }
        try #require(count == FaultControl.block)
        return words
    }

    @Test(
        "without rules it is the file: random requests against a model, with a cache and without",
        arguments: [0, 8, 512])
    func model(cache: Int) throws {
        let file = try Self.file()
        let control = try Self.control()
        let ranges = try FileRangeWork(file: file.file.raw, dataFile: file.file.raw, end: UInt64(Self.size + 4096))
        var queue = try TestQueue(
            Self.target(cache: cache), files: [file.file.raw, control.file.raw], ranges: ranges)
        try Self.begin(&queue)
        let whole = try file.content()
        var model = Array(whole[4096..<(4096 + Self.size)])
        var random = UInt64(cache) &* 0x9E37_79B9_7F4A_7C15 | 1
        func next(_ bound: Int) -> Int {
            random ^= random << 13
            random ^= random >> 7
            random ^= random << 17
            return Int(random % UInt64(bound))
        }
        var flushes = 0
        for round in 0..<1500 {
            let sectors = 1 + next(128)
            let sector = next(Self.size / 512 - sectors + 1)
            let place = sector * 512..<(sector + sectors) * 512
            switch next(20) {
            case 0..<9:
                let data = TestFile.pattern(place.count, seed: UInt8(truncatingIfNeeded: round))
                #expect(try queue.write(sector: UInt64(sector), data) == Int32(data.count))
                model.replaceSubrange(place, with: data)
            case 9:
                #expect(
                    try queue.perform(UblkIOOperation.discard, sector: UInt64(sector), sectors: UInt32(sectors)) == 0)
                model.replaceSubrange(place, with: [UInt8](repeating: 0, count: place.count))
            case 10:
                #expect(try queue.perform(UblkIOOperation.flush) == 0)
                flushes += 1
                let isThere = try Array(file.content()[4096..<(4096 + Self.size)]) == model
                #expect(isThere, "after flush \(flushes)")
            default:
                let read = try queue.read(sector: UInt64(sector), sectors: UInt32(sectors))
                let isRight = read.result == Int32(place.count) && read.data == Array(model[place])
                #expect(isRight, "round \(round)")
            }
        }
        #expect(flushes > 40)
        // Nothing beside the disk has changed.
        let after = try file.content()
        let isKept = after[..<4096] == whole[..<4096] && after[(4096 + Self.size)...] == whole[(4096 + Self.size)...]
        #expect(isKept)
        let state = try Self.block(control, FaultControl.stateOffset)
        #expect(state[FaultControl.State.starts] == 1 && state[FaultControl.State.requests] > 100)
    }

    @Test("each error comes as the errno of which the driver makes it, and only where the rule says")
    func errors() throws {
        let named: [(String, Int32)] = [
            ("EIO", EIO), ("ENOSPC", ENOSPC), ("ETIMEDOUT", ETIMEDOUT), ("medium", ENODATA), ("transport", ENOLINK),
            ("target", EREMOTEIO), ("protection", EILSEQ),
        ]
        let file = try Self.file()
        let control = try Self.control()
        for (name, errno) in named {
            var queue = try TestQueue(
                Self.target("read error=\(name) sectors=100-109"), files: [file.file.raw, control.file.raw])
            #expect(try queue.read(sector: 92, sectors: 8).result == 4096)
            #expect(try queue.read(sector: 93, sectors: 8).result == -errno)
            #expect(try queue.read(sector: 104, sectors: 1).result == -errno)
            #expect(try queue.read(sector: 109, sectors: 8).result == -errno)
            #expect(try queue.read(sector: 110, sectors: 8).result == 4096)
            #expect(try queue.write(sector: 100, TestFile.pattern(4096)) == 4096)
            #expect(try queue.read(sector: 100, sectors: 8).result == -errno)
            #expect(try queue.perform(UblkIOOperation.flush) == 0)
        }
    }

    @Test("a write heals the bad sectors that it covers, and no others, where the rule says so")
    func heals() throws {
        let file = try Self.file()
        let control = try Self.control()
        var queue = try TestQueue(
            Self.target("read error=medium heal sectors=3-3; read error=EIO heal sectors=64-127"),
            files: [file.file.raw, control.file.raw])
        #expect(try queue.read(sector: 3, sectors: 1).result == -ENODATA)
        #expect(try queue.read(sector: 100, sectors: 1).result == -EIO)
        #expect(try queue.write(sector: 100, TestFile.pattern(512)) == 512)
        #expect(try queue.read(sector: 100, sectors: 1).result == 512)
        #expect(try queue.read(sector: 100, sectors: 2).result == -EIO)
        #expect(try queue.write(sector: 60, TestFile.pattern(512 * 70)) == 512 * 70)
        #expect(try queue.read(sector: 64, sectors: 64).result == 32768)
        #expect(try queue.read(sector: 0, sectors: 8).result == -ENODATA)
    }

    @Test("counts: after=, times= and rate= strike as many as they say, the same with the same seed")
    func counts() throws {
        let file = try Self.file()
        let control = try Self.control()
        var queue = try TestQueue(
            Self.target("write error=EIO after=3 times=2"), files: [file.file.raw, control.file.raw])
        let results = try (0..<8).map { _ in try queue.write(sector: 0, TestFile.pattern(512)) }
        #expect(results == [512, 512, 512, -EIO, -EIO, 512, 512, 512])

        func struck(seed: UInt64) throws -> [Int] {
            var queue = try TestQueue(
                Self.target("read error=EIO rate=10%", seed: seed), files: [file.file.raw, control.file.raw])
            return try (0..<2000).filter { try queue.read(sector: UInt64($0 % 100), sectors: 1).result < 0 }
        }
        let first = try struck(seed: 1)
        #expect((140...260).contains(first.count), "\(first.count) of 2000 at 10 %")
        #expect(try struck(seed: 1) == first)
        #expect(try struck(seed: 2) != first)
    }

    @Test("the first rule that strikes decides, and delays add up")
    func order() throws {
        let file = try Self.file()
        let control = try Self.control()
        var queue = try TestQueue(
            Self.target("read delay=20ms; read error=medium; read error=EIO; all delay=30ms"),
            files: [file.file.raw, control.file.raw])
        let began = monotonicNanoseconds()
        #expect(try queue.read(sector: 0, sectors: 1).result == -ENODATA)
        #expect(monotonicNanoseconds() - began >= 50_000_000)
        #expect(queue.submitted.map(\.operation) == [IOUring.Operation.timeout])
        let state = queue.loop.target.memory.state
        #expect((0..<4).map { state[FaultControl.State.hits + $0] } == [1, 1, 0, 1])
    }

    @Test("delays: fixed, even within their bounds, exponential around their mean")
    func delays() throws {
        let file = try Self.file()
        let control = try Self.control()
        var queue = try TestQueue(
            Self.target("read delay=100us-900us; write delay=exp:1ms; flush delay=300us"),
            files: [file.file.raw, control.file.raw])
        for _ in 0..<400 {
            #expect(try queue.read(sector: 0, sectors: 1).result == 512)
            #expect(try queue.write(sector: 0, TestFile.pattern(512)) == 512)
            #expect(try queue.perform(UblkIOOperation.flush) == 0)
        }
        var times: [UInt64: [Double]] = [:]
        for record in 0..<1200 {
            let words = queue.loop.target.memory.log + record * FaultControl.recordWords
            times[words[FaultControl.Record.what] & 0xff, default: []].append(
                Double(words[FaultControl.Record.sectors] >> 32))
        }
        let reads = try #require(times[1])
        #expect(reads.count == 400 && reads.min()! >= 100 && reads.max()! <= 900)
        #expect((440...560).contains(reads.reduce(0, +) / 400))
        #expect((850...1150).contains(times[2]!.reduce(0, +) / 400) && times[2]!.max()! > 2500)
        #expect(times[4]! == [Double](repeating: 300, count: 400))
    }

    @Test("a torn write leaves its first sectors, and fails or looks whole")
    func torn() throws {
        for (cache, acked) in [(0, false), (0, true), (64, false), (64, true)] {
            let file = try Self.file()
            let control = try Self.control()
            var queue = try TestQueue(
                Self.target("write torn=3 \(acked ? "acked " : "")after=1 times=1", cache: cache),
                files: [file.file.raw, control.file.raw])
            try Self.begin(&queue)
            let (old, new) = (TestFile.pattern(4096, seed: 1), TestFile.pattern(4096, seed: 2))
            #expect(try queue.write(sector: 8, old) == 4096)
            // Not longer than three sectors: the rule is not about it.
            #expect(try queue.write(sector: 0, TestFile.pattern(1536)) == 1536)
            #expect(try queue.write(sector: 8, new) == (acked ? 4096 : -EIO))
            #expect(try queue.read(sector: 8, sectors: 8).data == Array(new[..<1536]) + Array(old[1536...]))
        }
    }

    @Test("a flipped read differs in as many bits, and the file does not")
    func flips() throws {
        let file = try Self.file()
        let control = try Self.control()
        var queue = try TestQueue(
            Self.target("read flip=2 times=20"), files: [file.file.raw, control.file.raw])
        let right = Array(try file.content()[4096..<8192])
        var places: Set<[Int]> = []
        for _ in 0..<20 {
            let read = try queue.read(sector: 0, sectors: 8)
            #expect(read.result == 4096)
            let wrong = zip(read.data, right).map { ($0 ^ $1).nonzeroBitCount }
            #expect([0, 2].contains(wrong.reduce(0, +)))
            places.insert(wrong.indices.filter { wrong[$0] > 0 })
        }
        #expect(places.count > 15)
        #expect(try queue.read(sector: 0, sectors: 8).data == right)
    }

    @Test("a power cut loses what was not flushed, all of it or some, and nothing that was")
    func cuts() throws {
        for keepsSome in [false, true] {
            let file = try Self.file()
            let control = try Self.control()
            var queue = try TestQueue(
                Self.target(cache: 256, cutAfter: 40, keepsSome: keepsSome), files: [file.file.raw, control.file.raw])
            try Self.begin(&queue)
            for index in 0..<20 {
                #expect(try queue.write(sector: UInt64(index * 8), TestFile.pattern(4096, seed: 1)) == 4096)
            }
            #expect(try queue.perform(UblkIOOperation.flush) == 0)
            let flushed = try file.content()
            for index in 10..<30 {
                #expect(try queue.write(sector: UInt64(index * 8), TestFile.pattern(4096, seed: 2)) == 4096)
            }
            #expect(try queue.read(sector: 80, sectors: 8).result == -EIO)
            #expect(try queue.write(sector: 80, TestFile.pattern(4096)) == -EIO)
            #expect(try queue.perform(UblkIOOperation.flush) == -EIO)
            // Some of it is still on its way to the file.
            for _ in 0..<20_000 where queue.loop.target.drain.phase != .none {
                _ = try queue.read(sector: 0, sectors: 1)
                usleep(100)
            }
            let state = queue.loop.target.memory.state
            #expect(state[FaultControl.State.off] == 1 && state[FaultControl.State.cuts] == 1)
            let (lost, kept) = (state[FaultControl.State.lost], state[FaultControl.State.kept])
            #expect(lost + kept == 160 && (keepsSome ? (40...120).contains(kept) : kept == 0), "\(lost), \(kept)")
            let after = try file.content()
            let newest = TestFile.pattern(4096, seed: 2)
            var changed: UInt64 = 0
            for sector in 0..<240 {
                let place = 4096 + sector * 512
                let now = Array(after[place..<(place + 512)])
                if now == Array(flushed[place..<(place + 512)]) { continue }
                let part = sector % 8 * 512
                let isNew = sector >= 80 && now == Array(newest[part..<(part + 512)])
                #expect(isNew, "sector \(sector)")
                changed += 1
            }
            #expect(changed == kept)
        }
    }

    @Test("obeys the plan in the control file: other rules, a cut, power again; and writes a log that says what it did")
    func plans() throws {
        let file = try Self.file()
        let control = try Self.control()
        var queue = try TestQueue(Self.target(cache: 64), files: [file.file.raw, control.file.raw])
        try Self.begin(&queue)
        var plan = FaultPlan()
        func obey(_ sequence: UInt64) throws {
            let words = FaultControl.encode(plan, sequence: sequence, generation: 0)
            let count = words.withUnsafeBytes { pwrite(control.file.raw, $0.baseAddress, $0.count, 0) }
            #expect(count == FaultControl.block)
            for _ in 0..<5000 {
                if try Self.block(control, FaultControl.stateOffset)[FaultControl.State.sequence] == sequence { return }
                _ = try queue.read(sector: 1000, sectors: 1)
                usleep(500)
            }
            Issue.record("plan \(sequence) was not obeyed")
        }
        plan.rules = try FaultPlan.rules("write error=ENOSPC sectors=16-23")
        plan.sets = 1
        try obey(1)
        #expect(try queue.write(sector: 16, TestFile.pattern(4096)) == -ENOSPC)
        #expect(try queue.write(sector: 8, TestFile.pattern(4096, seed: 9)) == 4096)
        plan.power = 3
        try obey(2)
        #expect(try queue.read(sector: 8, sectors: 8).result == -EIO)
        plan.power = 4
        try obey(3)
        let read = try queue.read(sector: 8, sectors: 8)
        let isOld = try read.data == Array(file.content()[8192..<12288])
        #expect(read.result == 4096 && isOld)
        // The counts of the rules go on, since they were not set again.
        #expect(try queue.write(sector: 16, TestFile.pattern(4096)) == -ENOSPC)
        try obey(4)
        let state = try Self.block(control, FaultControl.stateOffset)
        #expect(state[FaultControl.State.hits] == 2 && state[FaultControl.State.logged] == 3)
        let log = try Self.block(control, FaultControl.logOffset)
        #expect((0..<4).map { log[$0 * FaultControl.recordWords] } == [1, 2, 3, 0])
        #expect((0..<3).map { log[$0 * FaultControl.recordWords + 1] >> 8 & 0xff } == [3, 0, 3])
    }

    @Test("a power cut ends what is stuck; power that is given back while the cut is not done comes after it")
    func cutAndPower() throws {
        typealias State = FaultControl.State
        let file = try Self.file()
        let control = try Self.control()
        var queue = try TestQueue(
            Self.target("read stuck sectors=800-807", cache: 8), files: [file.file.raw, control.file.raw])
        try Self.begin(&queue)
        var plan = FaultPlan()
        func send(_ sequence: UInt64) {
            let words = FaultControl.encode(plan, sequence: sequence, generation: 0)
            #expect(
                words.withUnsafeBytes { pwrite(control.file.raw, $0.baseAddress, $0.count, 0) } == FaultControl.block)
        }
        let memory = try #require(queue.loop.target.memory)
        #expect(throws: SystemError.self) { try queue.read(sector: 800, sectors: 8) }
        #expect(memory.state[State.stuck] == 1)
        plan.power = 1
        send(1)
        var result: Int32?
        for _ in 0..<5000 where result == nil {
            result = try? queue.perform(UblkIOOperation.read, sector: 800, sectors: 8)
            usleep(500)
        }
        #expect(result == -EIO && memory.state[State.stuck] == 0 && memory.state[State.off] == 1)
        // As while what the cut left is on its way to the file.
        memory.state[State.off] = 2
        plan.power = 2
        send(2)
        for _ in 0..<200 {
            #expect(try queue.read(sector: 0, sectors: 1).result == -EIO)
            usleep(500)
        }
        #expect(memory.state[State.sequence] == 1)
        memory.state[State.off] = 1
        for _ in 0..<5000 where memory.state[State.off] != 0 {
            _ = try queue.read(sector: 0, sectors: 1)
            usleep(500)
        }
        #expect(try queue.read(sector: 0, sectors: 1).result == 512 && memory.state[State.sequence] == 2)
    }

    @Test("a plan that is none is not obeyed, and is told")
    func rejected() throws {
        let file = try Self.file()
        let control = try Self.control()
        var queue = try TestQueue(Self.target("read error=EIO"), files: [file.file.raw, control.file.raw])
        queue.loop.start()
        var plan = FaultPlan()
        plan.sets = 1
        // Torn reads: no text makes them. The sum is right.
        var rule = FaultRule()
        rule.action = .torn
        plan.rules = [rule]
        let words = FaultControl.encode(plan, sequence: 9, generation: 0)
        _ = words.withUnsafeBytes { pwrite(control.file.raw, $0.baseAddress, $0.count, 0) }
        for _ in 0..<5000 {
            if queue.loop.target.memory.state[FaultControl.State.rejected] == 9 { break }
            _ = try queue.write(sector: 0, TestFile.pattern(512))
            usleep(500)
        }
        #expect(queue.loop.target.memory.state[FaultControl.State.rejected] == 9)
        #expect(try queue.read(sector: 0, sectors: 1).result == -EIO)
    }

    @Test(
        "a worker that takes over begins without power when there was a cache, and goes on counting when there was none"
    )
    func takesOver() throws {
        let file = try Self.file()
        let control = try Self.control()
        for (cache, off) in [(0, false), (64, true)] {
            var state = [UInt64](repeating: 0, count: FaultControl.words)
            state.withUnsafeMutableBufferPointer { FaultControl.markState($0.baseAddress!) }
            state[FaultControl.State.starts] = 1
            state[FaultControl.State.matches] = 4
            var plan = FaultPlan()
            plan.rules = try FaultPlan.rules("read error=EIO after=5")
            let target = FaultTarget(
                start: 4096, bounds: DiskBounds(size: UInt64(Self.size), maxIOBytes: 65536), readOnly: false,
                writeFlags: 0, cacheBlocks: cache, keepsSome: false,
                beginning: FaultTarget.Beginning(plan: plan, state: state))
            var queue = try TestQueue(target, files: [file.file.raw, control.file.raw])
            #expect(queue.loop.target.isOff == off)
            let results = try (0..<3).map { _ in try queue.read(sector: 0, sectors: 1).result }
            #expect(results == (off ? [-EIO, -EIO, -EIO] : [512, -EIO, -EIO]))
        }
    }

    @Test("refuses what lies beyond its end and what it does not do, and writes nothing to a read-only disk")
    func refused() throws {
        let file = try Self.file()
        let control = try Self.control()
        let before = try file.content()
        var queue = try TestQueue(Self.target(readOnly: true), files: [file.file.raw, control.file.raw])
        #expect(try queue.read(sector: UInt64(Self.size / 512), sectors: 1).result == -EIO)
        #expect(try queue.read(sector: .max, sectors: 1).result == -EIO)
        #expect(try queue.perform(UblkIOOperation.read, sector: 0, sectors: 256) == -EIO)
        #expect(try queue.write(sector: 0, TestFile.pattern(512)) == -EROFS)
        #expect(try queue.perform(UblkIOOperation.discard, sectors: 8) == -EROFS)
        #expect(try queue.perform(UblkIOOperation.writeZeroes, sectors: 8) == -EOPNOTSUPP)
        #expect(try queue.perform(UblkIOOperation.flush) == 0)
        #expect(try queue.perform(77) == -EOPNOTSUPP)
        #expect(try file.content() == before)
    }

    @Test("a file that does not take the cache fails the flush, and the cache keeps what it has")
    func full() throws {
        let file = try Self.file()
        let control = try Self.control()
        let readable = try FileDescriptor.open(file.path, O_RDONLY)
        var queue = try TestQueue(Self.target(cache: 64), files: [readable.raw, control.file.raw])
        try Self.begin(&queue)
        #expect(try queue.write(sector: 0, TestFile.pattern(4096, seed: 3)) == 4096)
        #expect(try queue.perform(UblkIOOperation.flush) == -EBADF)
        #expect(try queue.read(sector: 0, sectors: 8).data == TestFile.pattern(4096, seed: 3))
        #expect(try queue.perform(UblkIOOperation.flush) == -EBADF)
    }
}
