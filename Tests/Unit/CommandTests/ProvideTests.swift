import BrokerInterface
import Foundation
import Glibc
import SystemCalls
import Testing
import Varlink

@testable import ubd

/// What a provider answers a client: replies, and how many files came with each.
private func answers(_ call: Call, _ provider: StorageProvider) -> [(reply: Reply, files: Int)] {
    var result: [(reply: Reply, files: Int)] = []
    try? provider.answer(call) { (answer) throws(SystemError) in
        result.append((answer.reply, answer.files.count))
    }
    return result
}

private func refusal(_ parameters: JSON) -> StorageProvider.Refusal? {
    do throws(StorageProvider.Refusal) {
        _ = try AcquireRequest(parameters)
        return nil
    } catch { return error }
}

@Suite("ubd provide")
struct ProvideTests {
    private func volumes(_ broker: FakeBroker) -> Volumes {
        Volumes(environment: broker.environment(Recorder()), folder: broker.folder.path + "/volumes")
    }

    private static func own(_ id: UInt32, file: String?, readOnly: Bool = false, state: DeviceState = .live) -> Device {
        var device = FakeBroker.device(id: id, state: state, readOnly: readOnly, file: file)
        device.owner = geteuid()
        return device
    }

    /// A broker that lists these devices, as often as it is asked.
    private func broker(_ connections: Int = 1, _ devices: @escaping @Sendable (String) -> [Device]) -> FakeBroker {
        let folder = Holder()
        let broker = FakeBroker(connections: connections) { (connection, _) in
            connection.send(Reply(parameters: ListReply(devices: devices(folder.path)).json))
        }
        folder.path = broker.folder.path + "/volumes"
        return broker
    }

    private final class Holder: @unchecked Sendable {
        var path = ""
    }

    @Test("the name of a volume is a plain file name, and that of a device is ubdbN")
    func names() {
        for name in ["data", "a", "9", "my-disk_1.old", String(repeating: "x", count: 64)] {
            #expect(Volumes.isName(name))
        }
        for name in [
            "", ".", "..", ".hidden", "-f", "a/b", "../x", "a b", "a\0", "ä", String(repeating: "x", count: 65),
        ] {
            #expect(!Volumes.isName(name))
        }
        #expect(Volumes.number("ubdb0") == 0 && Volumes.number("ubdb17") == 17)
        for name in ["ubdb", "ubdb-1", "ubdb01", "ubdb99999999999", "ublkb0", "ubdb0 "] {
            #expect(Volumes.number(name) == nil)
        }
    }

    @Test("a device that comes back is a volume by its name: its unit is started when it is not there")
    func enabled() throws {
        let state = TemporaryFolder()
        let started = state.path + "/started"
        let broker = broker(6) { _ in
            guard access(started, F_OK) == 0 else { return [] }
            var device = Self.own(3, file: "/x")
            device.name = "data"
            return [device]
        }
        let systemctl = state.path + "/systemctl"
        // What the unit's program does, as far as others see it.
        let script =
            "#!/bin/sh\n[ \"$*\" = '--user --no-pager --no-ask-password start ubd@data.service' ] || exit 1\n"
            + "mkdir -p \(state.path)/ubd-device/data && echo 3 43 >\(state.path)/ubd-device/data/made && touch \(started)\n"
        try Data(script.utf8).write(to: URL(fileURLWithPath: systemctl))
        chmod(systemctl, 0o755)
        let manager = ServiceManager(
            isSystem: false, folder: state.path + "/devices", runtime: state.path, systemctl: systemctl)
        try DeviceFiles(manager: manager).create("data", "NUMBER=any\nOPTIONS=-t loop -f /x --read-only\n")
        try DeviceFiles(manager: manager).create("wrong", "NUMBER=any\nOPTIONS=-t\n")
        try DeviceFiles(manager: manager).create("ubdb7", "NUMBER=any\nOPTIONS=-t null\n")
        var environment = broker.environment(Recorder())
        environment.manager = { _ in manager }
        let volumes = Volumes(environment: environment, folder: broker.folder.path + "/volumes")
        let expected = Volume(name: "data", aliases: [], readOnly: true, sizeBytes: nil, usedBytes: nil)
        #expect(try volumes.all() == [expected])
        #expect(try volumes.find("data") == .enabled && volumes.find("wrong") == .missing)
        let device = try volumes.start("data")
        #expect(device.id == 3)
        #expect(try volumes.all().map { [$0.name] + $0.aliases } == [["data", "ubdb3"]])
        #expect(try volumes.find("data") == .device(device))
    }

    @Test("the folder is that of the XDG specification, and never a relative one")
    func folder() {
        #expect(Volumes.defaultFolder { ["XDG_STATE_HOME": "/s", "HOME": "/h"][$0] } == "/s/ubd/volumes")
        #expect(Volumes.defaultFolder { ["XDG_STATE_HOME": "s", "HOME": "/h"][$0] } == "/h/.local/state/ubd/volumes")
        #expect(Volumes.defaultFolder { ["HOME": "h"][$0] } == nil)
    }

    @Test("a request of another shape is refused by the name of its first wrong parameter")
    func requests() {
        #expect(refusal(.record([("name", "a")])) == nil)
        #expect(
            refusal(.record([("name", "a"), ("createMode", .null), ("allowInteractiveAuthentication", true)])) == nil)
        let wrong: [(JSON, String)] = [
            (.record([]), "name"), (.record([("name", 1)]), "name"),
            (.record([("name", "a"), ("createMode", "never")]), "createMode"),
            (.record([("name", "a"), ("readOnly", "yes")]), "readOnly"),
            (.record([("name", "a"), ("requestAs", "tape")]), "requestAs"),
            (.record([("name", "a"), ("createSizeBytes", 0)]), "createSizeBytes"),
            (.record([("name", "a"), ("createSizeBytes", 513)]), "createSizeBytes"),
            (.record([("name", "a"), ("createSizeBytes", -512)]), "createSizeBytes"),
            (.record([("name", "a"), ("createSize", 512)]), "createSize"),
        ]
        for (parameters, name) in wrong {
            #expect(refusal(parameters) == .service(.invalidParameter(parameter: name)))
        }
        #expect(refusal(.record([("name", "a"), ("template", "zfs")])) == .interface("NoSuchTemplate"))
    }

    @Test(
        "the list has devices of the user that serve, and files of her folder, a file that is attached once, by its own name"
    )
    func list() throws {
        let broker = broker {
            var bobs = FakeBroker.device(id: 3)
            bobs.owner = geteuid() + 1
            return [
                Self.own(0, file: $0 + "/data.img"), Self.own(1, file: "/elsewhere/data.img", readOnly: true),
                Self.own(2, file: nil, state: .failed), bobs,
            ]
        }
        let folder = broker.folder.path + "/volumes"
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        for name in ["data.img", "spare.img", ".hidden.img", "notes.txt", "ubdb7.img"] {
            #expect(FileManager.default.createFile(atPath: "\(folder)/\(name)", contents: Data(count: 4096)))
        }
        #expect(symlink("/etc/passwd", "\(folder)/link.img") == 0)
        let found = try volumes(broker).all()
        #expect(found.map(\.name) == ["data", "ubdb1", "spare"])
        #expect(found.map(\.aliases) == [["ubdb0"], [], []])
        #expect(found.map(\.readOnly) == [false, true, false])
        #expect(found.map(\.sizeBytes) == [1 << 30, 1 << 30, 4096])
    }

    @Test("lists need more, come one by one, and follow the glob")
    func globs() {
        let broker = broker(4) { _ in [Self.own(0, file: nil), Self.own(12, file: nil)] }
        let provider = StorageProvider(volumes: volumes(broker))
        let method = StorageProvider.interface + ".ListVolumes"
        #expect(answers(Call(method: method), provider).map(\.reply) == [InterfaceError.expectedMore.reply])
        let all = answers(Call(method: method, more: true), provider).map(\.reply)
        #expect(all.map(\.continues) == [true, false])
        #expect(all.map { $0.parameters["name"] } == ["ubdb0", "ubdb12"])
        let some = answers(Call(method: method, parameters: .record([("matchName", "*1?")]), more: true), provider)
        #expect(some.map { $0.reply.parameters["name"] } == ["ubdb12"])
        let none = answers(Call(method: method, parameters: .record([("matchName", "x*")]), more: true), provider)
        #expect(none.map(\.reply.error) == [StorageProvider.interface + ".NoSuchVolume"])
    }

    @Test("what cannot be acquired is refused by the interface's own errors, and nothing is made")
    func refusals() {
        let cases: [([(String, JSON?)], String)] = [
            ([("name", "missing"), ("createMode", "open")], "NoSuchVolume"),
            ([("name", "missing")], "CreateSizeRequired"),
            ([("name", "../x"), ("createSizeBytes", 4096)], "CreateNotSupported"),
            ([("name", "../x"), ("createMode", "open")], "NoSuchVolume"),
            ([("name", "ubdb9"), ("createSizeBytes", 4096)], "CreateNotSupported"),
            ([("name", "ubdb0"), ("createMode", "new"), ("createSizeBytes", 4096)], "VolumeExists"),
            ([("name", "ubdb0"), ("requestAs", "reg")], "WrongType"),
            ([("name", "ubdb0"), ("requestAs", "dir")], "WrongType"),
            ([("name", "ubdb1"), ("readOnly", false)], "ReadOnlyVolume"),
        ]
        for (parameters, error) in cases {
            let broker = broker { _ in [Self.own(0, file: nil), Self.own(1, file: nil, readOnly: true)] }
            let call = Call(method: StorageProvider.interface + ".Acquire", parameters: .record(parameters))
            let got = answers(call, StorageProvider(volumes: volumes(broker)))
            #expect(got.map(\.reply.error) == [StorageProvider.interface + "." + error], "\(parameters)")
            #expect(got.map(\.files) == [0])
            #expect(listFolder(broker.folder.path + "/volumes").isEmpty)
        }
    }

    @Test("a volume that cannot be attached is not left behind as a file, and the broker's words reach the client")
    func undone() {
        let broker = FakeBroker(connections: 2) { (connection, call) in
            if call.methodName == "List" {
                connection.send(Reply(parameters: ListReply(devices: []).json))
            } else {
                connection.send(InterfaceError.failed(message: "no", remedy: "later", step: "add", errno: nil).reply)
            }
        }
        let call = Call(
            method: StorageProvider.interface + ".Acquire",
            parameters: .record([("name", "new"), ("createSizeBytes", .integer(1 << 20))]))
        let got = answers(call, StorageProvider(volumes: volumes(broker)))
        #expect(got.map(\.reply.error) == [StorageProvider.failedError])
        #expect(got.first?.reply.parameters["remedy"] == "later")
        #expect(broker.finish())
        #expect(listFolder(broker.folder.path + "/volumes").isEmpty)
    }

    @Test("it describes the interfaces that it names, and knows no other")
    func service() throws {
        let broker = broker(0) { _ in [] }
        let provider = StorageProvider(volumes: volumes(broker))
        let info = try #require(answers(Call(method: "org.varlink.service.GetInfo"), provider).first)
        guard case .array(let names) = info.reply.parameters["interfaces"] else {
            Issue.record("no interfaces")
            return
        }
        for case .string(let name) in names {
            let call = Call(
                method: "org.varlink.service.GetInterfaceDescription",
                parameters: .record([("interface", .string(name))]))
            guard case .string(let text) = answers(call, provider).first?.reply.parameters["description"] else {
                Issue.record("\(name) has no description")
                continue
            }
            #expect(text.contains("interface \(name)\n"))
        }
        let other = answers(Call(method: "io.ubd.Broker.List"), provider)
        #expect(other.map(\.reply) == [InterfaceError.interfaceNotFound(interface: "io.ubd.Broker").reply])
        let method = answers(Call(method: StorageProvider.interface + ".Release"), provider)
        #expect(
            method.map(\.reply) == [InterfaceError.methodNotFound(method: StorageProvider.interface + ".Release").reply]
        )
    }

    @Test("without a connection from systemd it says how to get one")
    func noConnection() {
        let environments: [[String: String]] = [
            [:], ["LISTEN_FDS": "1"], ["LISTEN_FDS": "1", "LISTEN_PID": "1"],
            ["LISTEN_FDS": "2", "LISTEN_PID": "\(getpid())"],
        ]
        for variables in environments {
            do throws(CommandFailure) {
                _ = try ProviderConnection.inherited { variables[$0] }
                Issue.record("accepted \(variables)")
            } catch {
                #expect(error.status == .usage && error.remedy.contains("ubd-provide.socket"))
            }
        }
    }
}
