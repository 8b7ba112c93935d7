import BrokerInterface
import SystemCalls
import Testing
import Varlink

@testable import ubd

@Suite("ubd list")
struct ListTests {
    private let several = [
        FakeBroker.device(id: 12, target: "null", file: nil),
        FakeBroker.device(
            id: 0, file: "/home/alice/a/very/long/path/to/some/images/that/never/ends/and/never/ends/1.img"),
        FakeBroker.device(
            id: 3, state: .stuck, reason: "the file's server does not answer", readOnly: true, file: "x\u{1B}[31m.img"),
    ]

    private func run(_ arguments: [String], _ devices: [Device]) -> (
        status: Int32, console: Recorder, broker: FakeBroker
    ) {
        let broker = FakeBroker { connection, _ in connection.send(Reply(parameters: ListReply(devices: devices).json))
        }
        let console = Recorder()
        let status = CommandLineTool.run(arguments, broker.environment(console))
        _ = broker.finish()
        return (status, console, broker)
    }

    @Test("shows a table of at most 100 columns, in the order of the ids, with the reason below")
    func table() throws {
        let (status, console, _) = run(["list"], several)
        #expect(status == 0)
        try #require(console.output.count == 5)
        #expect(console.output[0] == "DEVICE       STATE  SIZE   BLOCK  MODE             QUEUES  OWNER  TARGET")
        #expect(console.output[1].hasPrefix("/dev/ubdb0   live   1 GiB  512    rw,copy,reissue  1x128   alice  …"))
        #expect(console.output[1].hasSuffix("ends/1.img"))
        #expect(
            console.output[2].hasPrefix(
                "/dev/ubdb3   stuck  1 GiB  512    ro,copy,reissue  1x128   alice  loop x?[31m.img"))
        #expect(console.output[3] == "  the file's server does not answer")
        #expect(console.output[4].hasPrefix("/dev/ubdb12  live"))
        for line in console.output { #expect(line.count <= 100, "\(line)") }
    }

    @Test("prints an array of devices as JSON, empty when there are none")
    func json() throws {
        let (_, console, _) = run(["list", "--json"], several)
        guard case .array(let list) = try JSON(parsing: console.output.joined(separator: "\n")) else {
            Issue.record("no array")
            return
        }
        #expect(try list.map { try Device(json: $0) } == several.sorted { $0.id < $1.id })
        let (status, empty, _) = run(["list", "--json"], [])
        #expect(status == 0 && empty.output == ["[]"])
    }

    @Test("says on stderr that there is nothing")
    func empty() {
        let (status, console, _) = run(["list"], [])
        #expect(status == 0)
        #expect(console.output == [] && console.errors == ["ubd: note: you have no devices"])
    }

    @Test("of one device asks for that one, and ends with 4 when it is not there")
    func one() throws {
        let (status, _, broker) = run(["list", "-n", "3"], [several[2]])
        #expect(status == 0)
        #expect(try BrokerCall(#require(broker.received.first)) == .list(ListRequest(id: 3)))
        let (missing, console, _) = run(["list", "-n", "9"], [])
        #expect(missing == 4)
        #expect(console.errors == ["ubd: you have no device 9; see 'ubd list'"])
    }

    @Test("takes a list of a thousand devices, longer than a call may be")
    func many() {
        let (status, console, _) = run(["list"], (0..<1000).map { FakeBroker.device(id: $0) })
        #expect(status == 0)
        #expect(console.output.count == 1001)
    }

    @Test("asks for a reply for each device, and takes as many as come: the last one says so")
    func replyForEach() throws {
        let broker = FakeBroker { connection, _ in
            for id in (0..<50).reversed() {
                let reply = ListReply(devices: [FakeBroker.device(id: UInt32(id))])
                connection.send(Reply(parameters: reply.json, continues: id > 0))
            }
        }
        let console = Recorder()
        #expect(CommandLineTool.run(["list"], broker.environment(console)) == 0)
        #expect(console.output.count == 51)
        #expect(try #require(broker.received.first).more)
        let broken = FakeBroker { connection, _ in
            connection.send(Reply(parameters: ListReply(devices: []).json, continues: true))
        }
        let lost = Recorder()
        #expect(CommandLineTool.run(["list"], broken.environment(lost)) == 6)
    }

    @Test("takes a reply that comes in small pieces and says more than this program knows")
    func pieces() {
        let broker = FakeBroker { connection, _ in
            let newer = JSON.record([("devices", [FakeBroker.device().json]), ("later", 1)])
            for byte in Reply(parameters: newer).message { connection.send(bytes: [byte]) }
        }
        let console = Recorder()
        #expect(CommandLineTool.run(["list"], broker.environment(console)) == 0)
        #expect(console.output.count == 2)
    }

    @Test("--watch shows each change as it comes, until the broker is gone")
    func watch() throws {
        let changes = [
            DeviceChange {
                ($0.id, $0.generation, $0.state) = (0, 7, .live)
                $0.since = 1_790_000_000
            }, nil,
            DeviceChange {
                ($0.id, $0.generation, $0.state) = (0, 7, .recovering)
                ($0.reason, $0.since, $0.waits) = ("its worker lost\u{1B} it", 1_790_000_009, true)
            },
            DeviceChange {
                ($0.id, $0.generation, $0.state) = (0, 7, nil)
                $0.since = 1_790_000_010
            },
        ]
        func run(_ arguments: [String]) -> (Int32, Recorder, FakeBroker) {
            let broker = FakeBroker { connection, _ in
                for change in changes { connection.send(MonitorReply(change: change).reply) }
            }
            let console = Recorder()
            return (CommandLineTool.run(arguments, broker.environment(console)), console, broker)
        }
        let (status, console, broker) = run(["list", "--watch", "-n", "0"])
        #expect(status == ExitStatus.brokerNotReachable.rawValue)
        let call = try #require(broker.received.first)
        #expect(try BrokerCall(call) == .monitor(MonitorRequest(ids: [0])))
        try #require(console.output.count == 3)
        #expect(console.output[0].hasSuffix("  ubdb0  live") && console.output[2].hasSuffix("  ubdb0  gone"))
        #expect(console.output[1].hasSuffix("  ubdb0  recovering  its worker lost? it"))
        let (_, json, all) = run(["list", "--watch", "--json"])
        #expect(try BrokerCall(#require(all.received.first)) == .monitor(MonitorRequest()))
        #expect(
            try json.output.prefix(3).map { try DeviceChange(json: JSON(parsing: $0)) } == changes.compactMap { $0 })
    }

    @Test("--watch says so when there is nothing yet, and ends when nobody reads it any more")
    func watchNothing() {
        let broker = FakeBroker { connection, _ in
            connection.send(MonitorReply(change: nil).reply)
            _ = connection.waitForEnd()
        }
        let console = Recorder()
        console.lost = SystemError("write", 32)
        #expect(CommandLineTool.run(["list", "--watch"], broker.environment(console)) == 1)
        #expect(console.errors.first == "ubd: note: you have no devices yet")
        #expect(broker.finish())
        let refusing = FakeBroker { connection, _ in
            connection.send(InterfaceError.noSuchDevice(message: "m", remedy: "r", id: 3).reply)
        }
        #expect(CommandLineTool.run(["list", "--watch", "-n", "3"], refusing.environment(Recorder())) == 4)
    }

    @Test("tells a cipher, since when a device waits for its server, and when nobody would connect it again")
    func servers() {
        var device = FakeBroker.device(target: "nbd", file: "nbd://server")
        device.keeper = 7
        #expect(run(["list"], [device]).console.output.count == 2)
        device.cipher = "TLS1.3 CHACHA20-POLY1305"
        let encrypted = run(["list"], [device]).console.output
        #expect(encrypted.count == 3 && encrypted[2] == "  its connections are encrypted: TLS1.3 CHACHA20-POLY1305")
        device.cipher = nil
        device.reason = "it waits for its server, which does not answer"
        device.waitsSince = 1_790_000_000
        let waiting = run(["list"], [device]).console.output
        #expect(waiting.count == 3 && waiting[2].hasPrefix("  since 2026-") && waiting[2].hasSuffix("not answer"))
        (device.reason, device.waitsSince, device.keeper) = (nil, nil, nil)
        #expect(run(["list"], [device]).console.output.last?.contains("it has no keeper: after") == true)
        (device.state, device.since) = (.recovering, 1_790_000_000)
        #expect(run(["list"], [device]).console.output.last?.contains("'ubd recover -n 0' makes a new") == true)
        // What has no second worker needs no keeper, and neither does a file.
        device.recovery = .none
        #expect(run(["list"], [device, FakeBroker.device(id: 1)]).console.output.count == 3)
    }

    @Test("refuses a reply with a file attached")
    func files() {
        let broker = FakeBroker { connection, _ in
            connection.send(Reply(parameters: ListReply(devices: []).json), files: [0])
        }
        let console = Recorder()
        #expect(CommandLineTool.run(["list"], broker.environment(console)) == 1)
        #expect(console.errors.first?.contains("files where none belong") == true)
    }
}

@Suite("ubd info and ubd features")
struct InfoTests {
    private func run(_ arguments: [String], _ info: InfoReply = FakeBroker.info) -> (status: Int32, console: Recorder) {
        let broker = FakeBroker { connection, _ in connection.send(Reply(parameters: info.json)) }
        let console = Recorder()
        return (CommandLineTool.run(arguments, broker.environment(console)), console)
    }

    @Test("show the caller's limits and the rule that gave them")
    func info() throws {
        let (status, console) = run(["info"])
        #expect(status == 0)
        let text = console.output.joined(separator: "\n")
        for part in ["0.1.0", "6.12.95", "allow group ubd", "8 devices of 4 queues x 256", "1 GiB of I/O", "any size"] {
            #expect(text.contains(part), "\(part)")
        }
        let json = try JSON(parsing: run(["info", "--json"]).console.output.joined())
        #expect(try InfoReply(parameters: json) == FakeBroker.info)
    }

    @Test("show where devices get control groups, and what these keep")
    func groups() {
        var info = FakeBroker.info
        #expect(run(["info"], info).console.output.contains("groups    no control groups for devices"))
        info.controlGroup = "/system.slice/ubd-workers.service"
        info.controllers = ["cpu", "memory"]
        var limits = GroupLimits()
        limits.deviceMemory = 1 << 30
        limits.cpuQuota = 200
        limits.ioBandwidth = 100 << 20
        info.limits?.groups = limits
        let lines = run(["info"], info).console.output
        for line in [
            "groups    cpu, memory in /system.slice/ubd-workers.service", "          1 GiB of memory per device",
            "          200 % of a processor", "          100 MiB per second read and as much written, on each disk",
        ] { #expect(lines.contains(line), "\(line)") }
    }

    @Test("tell who brings a device back when broker and worker die together")
    func recovery() {
        var info = FakeBroker.info
        info.descriptorStore = nil
        #expect(run(["info"], info).console.output.contains { $0.hasPrefix("recovery  by 'ubd recover' when") })
        info.descriptorStore = 7
        #expect(
            run(["info"], info).console.output.contains {
                $0.hasPrefix("recovery  by itself") && $0.contains("the files of 7 devices")
            })
    }

    @Test("tell how many workers a minute the caller may start, and what a broken sandbox costs")
    func starts() {
        var info = FakeBroker.info
        #expect(
            run(["info"], info).console.output.last == "          any number of adds, upgrades and recoveries a minute")
        info.limits?.maxStarts = 600
        info.limits?.penalty = 60
        #expect(
            run(["info"], info).console.output.suffix(2) == [
                "          600 adds, upgrades and recoveries a minute",
                "          no new worker for 60 s after one of yours broke its sandbox",
            ])
    }

    @Test("tell somebody who may nothing just that")
    func notPermitted() {
        var info = FakeBroker.info
        info.permitted = false
        info.rule = nil
        info.limits = nil
        let text = run(["info"], info).console.output.joined(separator: "\n")
        #expect(text.contains("you may   not add devices") && text.contains("none matched") && !text.contains("limits"))
    }

    @Test("name every feature, what this kernel has, and bits that nobody knows yet")
    func features() throws {
        var info = FakeBroker.info
        info.featureBits = 0x1FE | 1 << 40
        let (status, console) = run(["features"], info)
        #expect(status == 0)
        #expect(console.output.count == KernelFeature.all.count + 2)
        #expect(console.output.allSatisfy { $0.count <= 100 })
        let recovery = try #require(console.output.first { $0.contains("user-recovery ") })
        #expect(recovery.split(separator: " ").prefix(5) == ["3", "user-recovery", "yes", "yes", "6.1"])
        #expect(console.output.last?.hasPrefix("40   unknown") == true)
        guard case .array(let list) = try JSON(parsing: run(["features", "--json"], info).console.output.joined())
        else {
            Issue.record("no array")
            return
        }
        #expect(list.count == KernelFeature.all.count + 1)
        #expect(list[3]["name"] == "user-recovery" && list[3]["here"] == true && list[15]["here"] == false)
        #expect(list.last?["bit"] == 40)
    }
}
