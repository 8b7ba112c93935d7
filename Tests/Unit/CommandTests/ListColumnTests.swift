import BrokerInterface
import Foundation
import Glibc
import Synchronization
import SystemCalls
import Testing
import Varlink

@testable import ubd

@Suite("ubd list: columns, and a list that is kept up to date")
struct ListColumnTests {
    private func run(_ arguments: [String]) -> (status: Int32, console: Recorder) {
        var device = FakeBroker.device(state: .recovering, reason: "its worker died")
        (device.since, device.deaths) = (1_790_000_000, 2)
        let broker = FakeBroker { [device] connection, _ in
            connection.send(Reply(parameters: ListReply(devices: [device]).json))
        }
        let console = Recorder()
        return (CommandLineTool.run(arguments, broker.environment(console)), console)
    }

    @Test("-o shows the named columns in that order, and no lines below a device")
    func chosen() {
        let (status, console) = run(["list", "-o", "deaths,id,state,reason,keeper"])
        #expect(status == 0)
        #expect(
            console.output == [
                "DEATHS  ID  STATE       REASON           KEEPER", "2       0   recovering  its worker died  -",
            ])
    }

    @Test("-o cuts nothing, however long it is")
    func whole() {
        let reason = String(repeating: "long ", count: 100) + "end"
        let broker = FakeBroker { connection, _ in
            let device = FakeBroker.device(state: .recovering, reason: reason)
            connection.send(Reply(parameters: ListReply(devices: [device]).json))
        }
        let console = Recorder()
        #expect(CommandLineTool.run(["list", "-o", "id,reason"], broker.environment(console)) == 0)
        #expect(console.output.last == "0   \(reason)")
    }

    @Test("each column has a name in the help, and shows something", arguments: ListColumn.allCases)
    func each(_ column: ListColumn) throws {
        let help = Recorder()
        #expect(CommandLineTool.run(["list", "--help"], FakeBroker { _, _ in }.environment(help)) == 0)
        let words = help.output.joined().split { !$0.isLetter }
        #expect(words.contains { $0 == column.rawValue })
        let (status, console) = run(["list", "-o", column.rawValue])
        #expect(status == 0)
        try #require(console.output.count == 2)
        #expect(console.output[0] == column.rawValue.uppercased() && !console.output[1].isEmpty)
    }

    @Test("a column that does not exist is refused with the list of all", arguments: ["wrong", "", "id,,state", "ID"])
    func unknown(_ names: String) {
        let (status, console) = run(["list", "-o", names])
        #expect(status == 2 && console.output.isEmpty)
        #expect(console.errors.first?.contains("-o can not be '\(names)': there is no column") == true)
        #expect(console.errors.first?.hasSuffix(ListColumn.names) == true)
    }

    @Test("-o is refused with --json, and with --watch where there is no terminal", arguments: ["--json", "-w"])
    func refused(_ flag: String) {
        let (status, console) = run(["list", "-o", "id", flag])
        #expect(status == 2)
        #expect(console.errors.first?.hasPrefix("ubd: -o does not go with --") == true)
    }

    /// Tells of a live device, ends, and lists it to the next connection.
    private static func broker() -> FakeBroker {
        FakeBroker(connections: 2) { connection, call in
            guard call.methodName == "Monitor" else {
                return connection.send(
                    Reply(parameters: ListReply(devices: [1, 2, 3].map { FakeBroker.device(id: $0) }).json))
            }
            let change = DeviceChange { ($0.id, $0.generation, $0.state) = (1, 41, .live) }
            connection.send(MonitorReply(change: change).reply)
            connection.send(MonitorReply(change: nil).reply)
        }
    }

    @Test("on a terminal the list is drawn over the one before, and cut to the screen")
    func drawn() {
        let broker = Self.broker()
        let console = Recorder()
        var environment = broker.environment(console)
        environment.screen = { Screen(columns: 12, rows: 3) }
        #expect(CommandLineTool.run(["list", "-w", "-o", "device,state,owner"], environment) == 6)
        #expect(
            console.drawings == [
                "\u{1B}[HDEVICE      \u{1B}[K\r\n/dev/ubdb1  \u{1B}[K\r\n… 2 more lin\u{1B}[K\u{1B}[J"
            ])
    }

    @Test(
        "the program draws on a real terminal, and prints lines on one that can not move its cursor",
        arguments: [("xterm", true), ("dumb", false)])
    func terminal(_ type: String, _ draws: Bool) throws {
        let broker = Self.broker()
        var (controller, terminal): (Int32, Int32) = (-1, -1)
        var size = winsize(ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0)
        try #require(openpty(&controller, &terminal, nil, nil, &size) == 0)
        let name = String(cString: ttyname(terminal))
        let (process, _, _) = try Program.start(
            ["list", "--watch"], socket: broker.socketPath, shell: "TERM=\(type) exec \"$0\" \"$@\" >\(name)")
        process.waitUntilExit()
        #expect(process.terminationStatus == 6)
        close(terminal)
        var bytes = [UInt8](repeating: 0, count: 1 << 16)
        var text: [UInt8] = []
        // At the end of a terminal read(2) says EIO.
        while case let count = read(controller, &bytes, bytes.count), count > 0 { text += bytes[..<count] }
        close(controller)
        let shown = String(decoding: text, as: UTF8.self)
        #expect(shown.contains("\u{1B}[HDEVICE") == draws && shown.contains("\u{1B}") == draws, "\(shown)")
        #expect(shown.contains("/dev/ubdb3") == draws && shown.contains("  ubdb1  live") != draws, "\(shown)")
    }
}
