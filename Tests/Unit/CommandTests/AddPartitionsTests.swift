import BrokerInterface
import Foundation
import Glibc
import SystemCalls
import Synchronization
import Testing
import Varlink

@testable import PartitionTables

@testable import ubd

// One after another: some change what a signal does.
@Suite("ubd add --partition", .serialized)
struct AddPartitionsTests {
    /// A file of 1 MiB with an MBR of these partitions: first sector and number of sectors.
    private func image(_ folder: TemporaryFolder, _ partitions: [(start: UInt32, count: UInt32)]) throws -> String {
        let path = folder.file("disk.img", bytes: 1 << 20)
        var sector = Data(count: 512)
        for (index, partition) in partitions.enumerated() {
            let place = 446 + 16 * index
            sector[place + 4] = 0x83
            withUnsafeBytes(of: partition.start.littleEndian) {
                sector.replaceSubrange(place + 8..<place + 12, with: $0)
            }
            withUnsafeBytes(of: partition.count.littleEndian) {
                sector.replaceSubrange(place + 12..<place + 16, with: $0)
            }
        }
        (sector[510], sector[511]) = (0x55, 0xAA)
        let file = try FileHandle(forWritingTo: URL(filePath: path))
        try file.write(contentsOf: sector)
        try file.close()
        return path
    }

    /// Takes files and answers each Add with a device of the next number; `refuse` may answer otherwise, and deletions are
    /// answered by `delete`.
    private func broker(
        connections: Int, refuse: @escaping @Sendable (AddRequest, Int) -> Reply? = { _, _ in nil },
        delete: @escaping @Sendable (DeleteRequest) -> Reply = { _ in Reply() }
    ) -> FakeBroker {
        let count = Mutex(0)
        return FakeBroker(connections: connections) { connection, call in
            switch try? BrokerCall(call) {
            case .add(let request):
                let index = count.withLock { count in
                    count += 1
                    return count - 1
                }
                for file in connection.askForFiles(2) { close(file) }
                if let reply = refuse(request, index) { return connection.send(reply) }
                var device = FakeBroker.device(id: UInt32(request.id ?? Int64(index)), node: "/dev/null")
                (device.partition, device.set) = (request.partition, request.set)
                connection.send(AddReply.added(device, notices: []).reply)
            case .delete(let request): connection.send(delete(request))
            default: break
            }
        }
    }

    private func adds(_ broker: FakeBroker) throws -> [AddRequest] {
        try broker.received.compactMap { call in
            if case .add(let request) = try BrokerCall(call) { request } else { nil }
        }
    }

    private func deletes(_ broker: FakeBroker) throws -> [DeleteRequest] {
        try broker.received.compactMap { call in
            if case .delete(let request) = try BrokerCall(call) { request } else { nil }
        }
    }

    @Test(
        "of one number tells of its device, also when a signal ends it at that moment",
        arguments: [SIGINT, SIGTERM, SIGHUP])
    func oneInterrupted(signal: Int32) throws {
        let folder = TemporaryFolder()
        let path = try image(folder, [(8, 16)])
        let pid = Mutex<pid_t?>(nil)
        let broker = FakeBroker { connection, _ in
            for fd in connection.askForFiles(2) { close(fd) }
            while pid.withLock({ $0 }) == nil { usleep(1000) }
            connection.send(AddReply.added(FakeBroker.device(node: "/dev/null"), notices: []).reply)
            if let pid = pid.withLock({ $0 }) { kill(pid, signal) }
        }
        let line = ["add", "-t", "loop", "-f", path, "--partition", "1"]
        let (process, output, _) = try Program.start(line, socket: broker.socketPath)
        pid.withLock { $0 = process.processIdentifier }
        process.waitUntilExit()
        #expect(broker.finish())
        let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        #expect(text == "/dev/ubdb0\n")
    }

    @Test("of one number asks for a device of its bytes")
    func one() throws {
        let folder = TemporaryFolder()
        let path = try image(folder, [(64, 100), (200, 1000)])
        let broker = broker(connections: 1)
        let console = Recorder()
        let line = ["add", "-t", "loop", "-f", path, "--partition", "2", "--buffered"]
        #expect(CommandLineTool.run(line, broker.environment(console)) == 0)
        #expect(broker.finish() && console.output == ["/dev/ubdb0"])
        let request = try #require(try adds(broker).first)
        #expect(request.partition == 2 && request.set == nil && request.fileName == path)
        #expect(
            request.options == [
                OptionValue("buffered", "true"), OptionValue("offset", "102400"), OptionValue("size", "512000"),
            ])
    }

    @Test("takes blocks of the device for sectors of an MBR only where the table fits, and says so")
    func blocks() throws {
        let folder = TemporaryFolder()
        let fits = try image(folder, [(64, 104), (200, 1000)])
        for (size, offset, told) in [
            ("4096", "32768", "in sectors of 512 bytes, and not in sectors of 4096"), ("2048", "32768", nil),
        ] as [(String, String, String?)] {
            let broker = broker(connections: 1)
            let console = Recorder()
            let line = ["add", "-t", "loop", "-f", fits, "--partition", "1", "--block-size", size]
            #expect(CommandLineTool.run(line, broker.environment(console)) == 0, "\(console.errors)")
            let request = try #require(try adds(broker).first)
            #expect(request.options.contains(OptionValue("offset", offset)))
            #expect(request.options.contains(OptionValue("block-size", size)))
            #expect(told == nil || console.errors.contains { $0.contains(told!) }, "\(console.errors)")
        }
        // This one fits in both sizes.
        let other = TemporaryFolder()
        let path = try image(other, [(16, 32)])
        let broker = broker(connections: 1)
        let console = Recorder()
        let line = ["add", "-t", "loop", "-f", path, "--partition", "1", "--block-size", "4096"]
        #expect(CommandLineTool.run(line, broker.environment(console)) == 0)
        #expect(try adds(broker).first?.options.contains(OptionValue("offset", "65536")) == true)
        #expect(console.errors.contains { $0.contains("is taken to count in sectors of 4096 bytes") })
    }

    @Test("all stands for no more partitions than a disk can have, whatever the table says")
    func tooMany() throws {
        for (count, isTaken) in [(255, true), (256, false)] {
            let parts = (1...count).map { number in
                PartitionTable.Partition(number: number, offset: UInt64(number) << 20, size: 1 << 20, type: "83")
            }
            let table = PartitionTable(label: .gpt, sectorSize: 512, partitions: parts, notes: [])
            #expect((try? PartitionChoice.all.parts(of: table, "disk.img").count) == (isTaken ? count : nil))
            #expect(try PartitionChoice.one(count).parts(of: table, "disk.img").count == 1)
        }
    }

    @Test("all asks for one of each, in order, with numbers from --number on and one number for the set")
    func all() throws {
        let folder = TemporaryFolder()
        let path = try image(folder, [(64, 100), (1200, 100), (200, 1000)])
        for (more, ids) in [([], [nil, nil, nil]), (["-n", "7"], [7, 8, 9])] as [([String], [Int64?])] {
            let broker = broker(connections: 3)
            let console = Recorder()
            let line = ["add", "-t", "loop", "-f", path, "--partition", "all"] + more
            #expect(CommandLineTool.run(line, broker.environment(console)) == 0, "\(console.errors)")
            #expect(broker.finish())
            #expect(console.output == (more.isEmpty ? 0...2 : 7...9).map { "/dev/ubdb\($0)" })
            let requests = try adds(broker)
            #expect(requests.map(\.id) == ids && requests.map(\.partition) == [1, 2, 3])
            #expect(requests.map { $0.options.first?.value } == ["32768", "614400", "102400"])
            #expect(Set(requests.map(\.set)).count == 1 && requests[0].set ?? 0 > 0)
        }
    }

    @Test("all prints devices and notices as one JSON object")
    func json() throws {
        let folder = TemporaryFolder()
        let path = try image(folder, [(64, 100), (200, 1000)])
        let broker = broker(connections: 2)
        let console = Recorder()
        let line = ["add", "-t", "loop", "-f", path, "--partition", "all", "--json"]
        #expect(CommandLineTool.run(line, broker.environment(console)) == 0, "\(console.errors)")
        let json = try #require(
            try JSONSerialization.jsonObject(with: Data(console.output.joined().utf8)) as? [String: Any])
        #expect((json["devices"] as? [[String: Any]])?.map { $0["partition"] as? Int } == [1, 2])
    }

    @Test("all that fails in the middle leaves no device, and says at which partition it was")
    func failure() throws {
        let folder = TemporaryFolder()
        let path = try image(folder, [(64, 100), (200, 100), (300, 100)])
        let busy = InterfaceError.idInUse(message: "2 is in use", remedy: "take another", id: 2)
        // Three adds, a look for what is there, two deletions.
        let broker = broker(connections: 6) { _, index in index == 2 ? busy.reply : nil }
        let console = Recorder()
        let line = ["add", "-t", "loop", "-f", path, "--partition", "all"]
        #expect(CommandLineTool.run(line, broker.environment(console)) == ExitStatus.busy.rawValue)
        #expect(broker.finish() && console.output == [])
        #expect(console.errors == ["ubd: partition 3: 2 is in use, so no device was added; take another"])
        #expect(try deletes(broker).map(\.id) == [1, 0])
        #expect(try deletes(broker).map(\.generation) == [41, 40])
    }

    @Test("all that cannot undo what it did says what is left")
    func left() throws {
        let folder = TemporaryFolder()
        let path = try image(folder, [(64, 100), (200, 100)])
        let full = InterfaceError.idInUse(message: "1 is in use", remedy: "take another", id: 1)
        let busy = InterfaceError.busy(message: "in use", remedy: "end it", id: 0, holder: "a program")
        let broker = broker(
            connections: 4, refuse: { _, index in index == 1 ? full.reply : nil }, delete: { _ in busy.reply })
        let console = Recorder()
        _ = CommandLineTool.run(["add", "-t", "loop", "-f", path, "--partition", "all"], broker.environment(console))
        #expect(console.errors[0].contains("1 of those added before are left; 'ubd del -n 0'; take another"))
    }

    @Test(
        "all that is interrupted undoes what it did before the signal ends it, also at the last partition",
        arguments: [1, 2])
    func interrupted(at last: Int) throws {
        let folder = TemporaryFolder()
        let path = try image(folder, [(64, 100), (200, 100), (300, 100)])
        // It would end the test. Nobody else's tests use it.
        signal(SIGHUP) { _ in }
        defer {
            // The threads of the tests block it, so it may still be pending: to ignore it again takes it away.
            signal(SIGHUP, SIG_IGN)
            signal(SIGHUP, SIG_DFL)
        }
        let caller = pthread_self()
        let broker = broker(connections: 2 * last + 3) { _, index in
            if index == last { pthread_kill(caller, SIGHUP) }
            return nil
        }
        let console = Recorder()
        let line = ["add", "-t", "loop", "-f", path, "--partition", "all"]
        #expect(CommandLineTool.run(line, broker.environment(console)) == ExitStatus.failed.rawValue)
        #expect(console.output == [] && console.errors.joined().contains("it was interrupted"))
        #expect(try deletes(broker).first?.id ?? 9 <= UInt32(last) && deletes(broker).last?.id == 0)
        #expect(try adds(broker).count == last + 1)
    }

    @Test("all is not interrupted by a signal that is ignored, as by nohup")
    func ignored() throws {
        let folder = TemporaryFolder()
        let path = try image(folder, [(64, 100), (200, 100)])
        signal(SIGHUP, SIG_IGN)
        defer {
            // Where the threads of the tests block it, it is still pending: ignored again, it is gone.
            signal(SIGHUP, SIG_IGN)
            signal(SIGHUP, SIG_DFL)
        }
        let caller = pthread_self()
        let broker = broker(connections: 2) { _, index in
            if index == 0 { pthread_kill(caller, SIGHUP) }
            return nil
        }
        let console = Recorder()
        let line = ["add", "-t", "loop", "-f", path, "--partition", "all"]
        #expect(CommandLineTool.run(line, broker.environment(console)) == 0, "\(console.errors)")
        #expect(console.output == ["/dev/ubdb0", "/dev/ubdb1"])
    }

    @Test("all that is interrupted deletes also the device of which it has heard nothing yet")
    func unheard() throws {
        let folder = TemporaryFolder()
        let path = try image(folder, [(64, 100), (200, 100)])
        // The second add ends without an answer, and its device is there all the same.
        let set = Mutex<Int64?>(nil)
        let broker = FakeBroker(connections: 6) { connection, call in
            switch try? BrokerCall(call) {
            case .add(let request):
                set.withLock { $0 = request.set }
                for file in connection.askForFiles(2) { close(file) }
                guard request.partition == 1 else { return }
                var device = FakeBroker.device(id: 0, node: "/dev/null")
                (device.partition, device.set) = (request.partition, request.set)
                connection.send(AddReply.added(device, notices: []).reply)
            case .list:
                let devices = (0...3).map { (id: UInt32) in
                    var device = FakeBroker.device(id: id, state: id == 2 ? .adding : .live)
                    device.set = id == 3 ? 7 : set.withLock { $0 }
                    return device
                }
                connection.send(Reply(parameters: ListReply(devices: devices).json))
            default: connection.send(Reply())
            }
        }
        let console = Recorder()
        _ = CommandLineTool.run(["add", "-t", "loop", "-f", path, "--partition", "all"], broker.environment(console))
        #expect(console.output == [] && console.errors.joined().contains("partition 2: "))
        #expect(try deletes(broker).map(\.id) == [1, 0])
    }

    @Test("refuses partitions that overlap, lie outside the file or are not there, before it asks for a device")
    func refused() throws {
        let folder = TemporaryFolder()
        let path = try image(folder, [(64, 100), (100, 100), (300, 4000), (400, 1)])
        for (word, text) in [
            ("1", "partition 1 of \(path) overlaps partition 2"), ("all", "overlaps partition 2"),
            ("3", "partition 3 of \(path) ends outside the file"), ("7", "has no partition 7: there is 1, 2, 3, 4"),
            ("0", "--partition can not be '0'"), ("two", "--partition can not be 'two'"),
            ("99999999999999999999", "--partition can not be"),
        ] {
            let console = Recorder()
            let line = ["add", "-t", "loop", "-f", path, "--partition", word]
            let status = CommandLineTool.run(line, FakeBroker(connections: 0) { _, _ in }.environment(console))
            #expect(status == 1 || status == 2)
            #expect(console.errors.joined().contains(text), "\(word): \(console.errors)")
        }
    }

    @Test("takes no other word for the place, and no target without a file")
    func usage() throws {
        let folder = TemporaryFolder()
        let path = try image(folder, [(64, 100)])
        for line in [
            ["-t", "loop", "-f", path, "--partition", "1", "--offset", "512"],
            ["-t", "loop", "-f", path, "--partition", "all", "--size", "512"], ["-t", "null", "--partition", "1"],
            ["-t", "nbd", "--uri", "nbd://x", "--partition", "1"],
        ] {
            let console = Recorder()
            let status = CommandLineTool.run(
                ["add"] + line, FakeBroker(connections: 0) { _, _ in }.environment(console))
            #expect(status == ExitStatus.usage.rawValue, "\(line): \(console.errors)")
            #expect(console.errors.joined().contains("--partition"))
        }
    }

    @Test("of a file without a table says so")
    func noTable() throws {
        let folder = TemporaryFolder()
        let path = folder.file("empty.img", bytes: 1 << 20)
        let console = Recorder()
        let line = ["add", "-t", "loop", "-f", path, "--partition", "1"]
        let status = CommandLineTool.run(line, FakeBroker(connections: 0) { _, _ in }.environment(console))
        #expect(status == ExitStatus.failed.rawValue)
        #expect(console.errors.joined().contains("\(path) has no partition table (GPT or MBR)"))
    }

    @Test("is what ubd partitions -f shows, as columns and as JSON, with what is wrong")
    func shown() throws {
        let folder = TemporaryFolder()
        let path = try image(folder, [(64, 100), (200, 4000)])
        let environment = FakeBroker(connections: 0) { _, _ in }
        let (console, json) = (Recorder(), Recorder())
        #expect(CommandLineTool.run(["partitions", "-f", path], environment.environment(console)) == 0)
        let words = console.output.map { $0.split(separator: " ").map(String.init) }
        #expect(words.count == 3 && words[1] == ["1", "32768", "51200", "50", "KiB", "83"])
        #expect(console.errors == ["ubd: note: partition 2 of \(path) ends outside the file, which has 1048576 bytes"])
        #expect(CommandLineTool.run(["partitions", "-f", path, "--json"], environment.environment(json)) == 0)
        let object = try #require(
            try JSONSerialization.jsonObject(with: Data(json.output.joined().utf8)) as? [String: Any])
        #expect(object["label"] as? String == "dos" && object["sectorSize"] as? Int == 512)
        let partitions = try #require(object["partitions"] as? [[String: Any]])
        #expect(partitions.map { $0["offset"] as? Int } == [32768, 102400])
        #expect(partitions[0]["fault"] == nil && (partitions[1]["fault"] as? String)?.hasPrefix("ends outside") == true)
        // An MBR does not say in which sectors it counts.
        let large = Recorder()
        _ = CommandLineTool.run(["partitions", "-f", path, "--block-size", "4K"], environment.environment(large))
        #expect(large.output[1].contains("262144"))
        for line in [
            [], ["-n", "0", "-f", path], ["-n", "0", "--block-size", "512"], ["-f", path, "--block-size", "1K"],
        ] {
            let status = CommandLineTool.run(["partitions"] + line, environment.environment(Recorder()))
            #expect(status == ExitStatus.usage.rawValue, "\(line)")
        }
    }
}
