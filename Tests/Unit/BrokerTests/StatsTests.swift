import BrokerInterface
import Glibc
import SystemCalls
import Testing
import WorkerProtocol

@testable import ubd_broker

@Suite("What Stats tells")
struct StatsTests {
    private typealias Word = StatisticsPage.Word

    /// The worker's side of a device's page.
    private func page(_ host: Host, _ id: UInt32) throws -> Mapping {
        let statistics = try #require(host.broker.devices[id]?.statistics)
        return try Mapping.shared(
            statistics.file.raw, offset: 0, bytes: StatisticsPage.bytes(queues: statistics.queues), writable: true)
    }

    private func write(_ value: UInt64, _ word: Int, queue: Int = 0, to page: borrowing Mapping) {
        page.base.storeBytes(of: value, toByteOffset: queue * StatisticsPage.stride + word * 8, as: UInt64.self)
    }

    @Test("is what the queues have written, each by itself and all together")
    func counts() throws {
        let host = try Host()
        _ = try host.add(AddRequest(target: "null", queues: 2, depth: 8)).get()
        let page = try page(host, 0)
        for queue in 0..<2 {
            write(7, Word.requests, queue: queue, to: page)
            write(4096, Word.bytes, queue: queue, to: page)
            write(2, Word.errors, queue: queue, to: page)
            write(3, Word.requests + StatisticsPage.Operation.writeZeroes.rawValue, queue: queue, to: page)
            write(14, Word.taken, queue: queue, to: page)
            write(9, Word.turns, queue: queue, to: page)
            write(5, Word.batchSizes + queue, queue: queue, to: page)
            write(1, Word.latencies + 6, queue: queue, to: page)
        }
        let reply = try host.stats(StatsRequest(id: 0, queues: true), peer: Host.alice)
        let device = try #require(reply.devices.first)
        let queues = try #require(device.queues)
        let total = try #require(device.total)
        #expect(queues.map(\.read) == [7, 7].map { OperationCount(requests: $0, bytes: 4096, errors: 2) })
        #expect(queues.map(\.batchSizes) == [[5], [0, 5]])
        #expect(total.read == OperationCount(requests: 14, bytes: 8192, errors: 4))
        #expect(total.writeZeroes.requests == 6 && total.inFlight == 8 && total.wakeUps == 18)
        #expect(total.latency == [0, 0, 0, 0, 0, 0, 2])
        #expect(total.batchSizes == [5, 5])
        #expect(reply.latencyBounds.count == StatisticsPage.Latency.classes - 1)
        #expect(reply.latencyBounds.prefix(3) == [250, 500, 1000])
        #expect(try host.stats(StatsRequest(), peer: Host.alice).devices.first?.queues == nil)
    }

    @Test("stays within bounds whatever a worker writes", arguments: [UInt64.max, 1 << 63, UInt64(Int64.max), 0x5555])
    func hostile(value: UInt64) throws {
        let host = try Host()
        _ = try host.add(AddRequest(target: "null", queues: 2, depth: 8)).get()
        let page = try page(host, 0)
        for queue in 0..<2 {
            for word in 0..<Word.count { write(value, word, queue: queue, to: page) }
            write(StatisticsPage.layout, Word.layout, queue: queue, to: page)
        }
        for taken in [value, 0, .max] {
            write(taken, Word.taken, to: page)
            let reply = try host.stats(StatsRequest(id: 0, queues: true), peer: Host.alice)
            // The numbers survive the wire, whose numbers are signed.
            #expect(try StatsReply(parameters: reply.json).devices.first?.queues == reply.devices.first?.queues)
            for queue in try #require(reply.devices.first?.queues) {
                #expect(queue.inFlight <= 8)
                #expect(queue.wakeUps <= UInt64(Int64.max) && queue.read.errors <= queue.read.requests)
            }
            #expect(try #require(reply.devices.first?.total).inFlight <= 16)
            // The watchdog reads the same page.
            let claims = try #require(host.broker.devices[0]?.statistics).total
            #expect(claims.taken >= 0 && claims.committed >= 0)
        }
    }

    @Test("is of one's own devices only, unless one is root")
    func visibility() throws {
        let host = try Host()
        _ = try host.add().get()
        _ = try host.add(as: Host.bob).get()
        let root = PeerCredentials(pid: 1, uid: 0, gid: 0, groups: [])
        func seen(_ peer: PeerCredentials) throws -> [UInt32] {
            try host.stats(StatsRequest(), peer: peer).devices.map(\.id)
        }
        #expect(try seen(Host.alice) == [0])
        #expect(try seen(Host.bob) == [1])
        #expect(try seen(Host.mallory) == [])
        #expect(try seen(root) == [0, 1])
        #expect(throws: InterfaceError.self) { try host.stats(StatsRequest(id: 1), peer: Host.alice) }
        #expect(throws: InterfaceError.invalidParameter(parameter: "queues")) {
            try host.stats(StatsRequest(queues: true), peer: Host.alice)
        }
    }

    @Test("goes on when the worker is replaced: the page is the device's")
    func replaced() throws {
        let host = try Host()
        host.kernel.features = [.perIODaemon]
        _ = try host.add().get()
        let page = try page(host, 0)
        write(1000, Word.requests + StatisticsPage.Operation.write.rawValue, to: page)
        write(1003, Word.taken, to: page)
        let since = try #require(host.stats(StatsRequest(id: 0), peer: Host.alice).devices.first?.since)
        #expect(abs(since - Int64(time(nil))) < 100)
        host.kernel.quiesce(0)
        host.workers[0].die(.killed(signal: SIGSEGV))
        // Also while there is no worker.
        #expect(
            try host.stats(StatsRequest(id: 0), peer: Host.alice).devices.first?.total?.write.requests == 1000)
        try host.run { host.broker.devices[0]?.info.state == .live }
        #expect(host.workers.count == 2)
        #expect(
            try host.stats(StatsRequest(id: 0), peer: Host.alice).devices.first?.total?.write.requests == 1000)
        // And the new one writes into the same memory.
        write(1001, Word.requests + StatisticsPage.Operation.write.rawValue, to: page)
        #expect(
            try host.stats(StatsRequest(id: 0), peer: Host.alice).devices.first?.total?.write.requests == 1001)
    }

    @Test("is nothing while a worker of another layout counts")
    func otherLayout() throws {
        let host = try Host()
        _ = try host.add().get()
        let page = try page(host, 0)
        write(5, Word.requests, to: page)
        write(StatisticsPage.layout + 1, Word.layout, to: page)
        // Its layout was known when it began; a later change of the layout word is ignored.
        #expect(try host.stats(StatsRequest(id: 0), peer: Host.alice).devices.first?.total?.read.requests == 5)
        func next() throws {
            let count = host.workers.count
            host.kernel.quiesce(0)
            host.workers[count - 1].die(.killed(signal: SIGKILL))
            try host.run { host.workers.count == count + 1 && host.broker.devices[0]?.info.state == .live }
        }
        try next()
        let device = try #require(host.stats(StatsRequest(id: 0), peer: Host.alice).devices.first)
        #expect(device.total == nil && device.since == nil && device.queues == nil)
        write(StatisticsPage.layout, Word.layout, to: page)
        try next()
        #expect(try host.stats(StatsRequest(id: 0), peer: Host.alice).devices.first?.total?.read.requests == 5)
    }

    @Test("workers may take the time only where the kernel itself trusts the processors' clocks")
    func clocks() throws {
        for (sources, steady) in [
            ("tsc hpet acpi_pm \n", true), ("hpet acpi_pm\n", false), ("arch_sys_counter\n", true), (nil, false),
            ("tsc-early jiffies\n", true), ("notsc\n", false),
        ] as [(String?, Bool)] {
            let host = try Host()
            let folder = host.folder + "/sys/devices/system/clocksource/clocksource0"
            if let sources {
                try makeFolders(folder)
                try replaceFile(folder + "/available_clocksource", with: Array(sources.utf8), mode: 0o644)
            }
            _ = try host.add().get()
            #expect(host.workers[0].launch?.flags.contains(.steadyTicks) == steady, "\(sources ?? "-")")
        }
    }

    private func makeFolders(_ path: String) throws {
        var made = ""
        for part in path.split(separator: "/") {
            made += "/" + part
            if mkdir(made, 0o755) != 0, errno != EEXIST { throw SystemError("mkdir \(made)", errno) }
        }
    }

    // MARK: --cpus

    private func host(online: String, policy: String? = nil) throws -> Host {
        let host = try Host(policy: policy)
        try makeFolders(host.folder + "/sys/devices/system/cpu")
        try replaceFile(host.folder + "/sys/devices/system/cpu/online", with: Array((online + "\n").utf8), mode: 0o644)
        return host
    }

    @Test("a device's own CPUs take the place of the kernel's, for its replacement too, and are remembered")
    func processors() throws {
        let host = try host(online: "0-3")
        host.kernel.features = [.perIODaemon]
        let (device, _) = try host.add(AddRequest(target: "null", queues: 2, cpus: "3,1")).get()
        #expect(device.cpus?.text == "1,3")
        #expect(host.workers[0].serve == ServeMessage(affinity: [[0b1010]]))
        #expect(!host.kernel.log.contains { $0.hasPrefix("getQueueAffinity") })
        #expect(try host.broker.store.load().records.first?.device.cpus?.text == "1,3")
        host.kernel.quiesce(0)
        host.workers[0].die(.killed(signal: SIGSEGV))
        try host.run { host.broker.devices[0]?.info.state == .live }
        #expect(host.workers[1].serve == ServeMessage(affinity: [[0b1010]]))
        _ = try host.add(AddRequest(target: "null")).get()
        #expect(host.kernel.log.contains { $0.hasPrefix("getQueueAffinity") })
    }

    @Test("a worker stays on the CPUs of its line of the policy, wherever the kernel would have its queues")
    func allowedProcessors() throws {
        let host = try host(online: "0-3", policy: "allow group=50 target=* cpus=1,3")
        host.kernel.features = [.perIODaemon]
        // Queue 0's own CPUs are 0 and 1, queue 1's are 2 alone.
        host.kernel.affinity = [[0b11], [0b100]]
        let (device, _) = try host.add(AddRequest(target: "null", queues: 2)).get()
        #expect(device.allowedCPUs?.text == "1,3" && device.cpus == nil)
        host.kernel.quiesce(0)
        host.workers[0].die(.killed(signal: SIGSEGV))
        try host.run { host.broker.devices[0]?.info.state == .live }
        #expect(host.workers.map(\.processors) == [[0b1010], [0b1010]])
        #expect(host.workers.map(\.serve?.affinity) == [[[0b10], [0b1010]], [[0b10], [0b1010]]])
        #expect(try host.broker.store.load().records.first?.device.allowedCPUs?.text == "1,3")
        guard case .failure(.notPermitted(let message, _, _)) = try host.add(AddRequest(target: "null", cpus: "2-3"))
        else {
            Issue.record("CPU 2 was given")
            return
        }
        #expect(message == "CPU 2 is outside of cpus=1,3 of line 1 of /etc/ubd/access.policy")
        _ = try host.add(AddRequest(target: "null", cpus: "3")).get()
        #expect(host.workers[2].serve == ServeMessage(affinity: [[0b1000]]) && host.workers[2].processors == [0b1010])
    }

    @Test("a line whose CPUs are all offline gives no device")
    func allOffline() throws {
        let host = try host(online: "0-3", policy: "allow group=50 target=* cpus=4-7")
        guard case .failure(.notPermitted(let message, _, _)) = try host.add() else {
            Issue.record("it was added")
            return
        }
        #expect(message.contains("no processor of cpus=4-7") && host.leftovers == [])
    }

    @Test("CPUs that are not there are refused by number, with those that are")
    func offline() throws {
        let host = try host(online: "0-1,3")
        for (cpus, missing) in [("0-3", "2"), ("7", "7")] {
            guard
                case .failure(.invalidOption(let message, let remedy, "cpus", let value)) =
                    try host.add(AddRequest(target: "null", cpus: cpus))
            else {
                Issue.record("\(cpus) was taken")
                continue
            }
            #expect(message.contains("CPU \(missing) is not online") && remedy.contains("0-1,3") && value == cpus)
        }
        #expect(host.leftovers == [])
    }
}
