import BrokerInterface
import Foundation
import Glibc
import SystemCalls
import Testing
import Varlink

@testable import ubd

@Suite("ubd doctor")
struct DoctorTests {
    private func checks(_ machine: FakeMachine, permitted: Bool = true) -> [Check] {
        var info = FakeBroker.info
        info.permitted = permitted
        return KernelChecks.all(machine) + UserChecks.all(machine, broker: .success(info))
    }

    private func check(
        _ name: String, permitted: Bool = true, _ change: (inout FakeMachine) -> Void
    ) throws -> Check {
        var machine = FakeMachine.healthy
        change(&machine)
        return try #require(checks(machine, permitted: permitted).first { $0.name == name })
    }

    @Test("finds nothing to mend on a healthy host and ends with 0")
    func healthy() {
        for check in checks(.healthy) {
            #expect(check.status == .ok && check.remedy == nil, "\(check.line)")
        }
        let broker = FakeBroker { connection, _ in connection.send(Reply(parameters: FakeBroker.info.json)) }
        let console = Recorder()
        #expect(CommandLineTool.run(["doctor"], broker.environment(console)) == 0)
        #expect(console.output.count == 12)
        #expect(console.output.last == "ready: ubd add -t loop -f FILE")
    }

    @Test("ends with 7 and one line per check when something is missing")
    func missing() throws {
        let console = Recorder()
        let environment = CommandEnvironment(
            console: console, socketPath: "/nowhere/socket", host: FakeMachine.healthy, executable: "")
        #expect(CommandLineTool.run(["doctor", "--json"], environment) == 7)
        guard case .array(let list) = try JSON(parsing: console.output.joined()) else {
            Issue.record("no array")
            return
        }
        let broker = try #require(list.first { $0["check"] == "broker" })
        #expect(broker["status"] == "missing")
        #expect(broker["remedy"] == "start it ('systemctl start ubd-broker.socket' as root)")
        #expect(list.first { $0["check"] == "access" }?["status"] == "warning")
    }

    @Test("ends with the first thing to do, or with the number of warnings")
    func next() {
        let ok = Check.ok("kernel", "Linux 7.3")
        let warning = Check.warning("udev", "no udev", remedy: "install it")
        let module = Check.missing("module", "not loaded", remedy: "run 'modprobe ublk_drv' as root")
        let broker = Check.missing("broker", "no broker", remedy: "start it")
        #expect(DoctorCommand.next([ok, warning, module, broker]) == "next: run 'modprobe ublk_drv' as root")
        #expect(DoctorCommand.next([ok, warning]) == "ready (with 1 warning): ubd add -t loop -f FILE")
        #expect(DoctorCommand.next([warning, warning]) == "ready (with 2 warnings): ubd add -t loop -f FILE")
        #expect(DoctorCommand.next([ok]) == "ready: ubd add -t loop -f FILE")
    }

    /// A host on which a process of that state has the broker's lock and no broker answers.
    private func hanging(_ letter: String, flags: Int = 0, pending: String = "0") throws -> Check {
        var machine = FakeMachine.healthy
        machine.lockIDs["/nowhere/lock"] = "00:1a:4711"
        machine.texts["/proc/locks"] = """
            1: FLOCK  ADVISORY  WRITE 18 00:1a:4711 0 EOF
            2: POSIX  ADVISORY  WRITE 19 00:1a:4712 0 EOF
            3: POSIX  ADVISORY  WRITE 17 00:1a:4711 0 0
            """
        machine.texts["/proc/17/stat"] =
            "17 (ubd-broker) \(letter) 1 17 17 0 -1 \(flags) 1 0 0 0 5 6 0 0 20 0 1 0 4711 1 2 3"
        machine.texts["/proc/17/status"] = "SigPnd:\t\(pending)\nShdPnd:\t0\n"
        let environment = CommandEnvironment(
            console: Recorder(), socketPath: "/nowhere/socket", host: machine, executable: "")
        return try #require(DoctorCommand.checks(environment).first { $0.name == "broker" })
    }

    @Test("tells a broker that hangs, that is stopped, or that was killed and can not end from one that is not there")
    func hangingBroker() throws {
        let hangs = try hanging("D")
        #expect(
            hangs.message.hasSuffix(
                "its process 17 (ubd-broker) waits in the kernel, where no signal wakes it (state D)"))
        #expect(hangs.remedy?.contains("kill -9 17") == true)
        #expect(try hanging("T").remedy?.contains("kill -CONT 17") == true)
        for killed in [try hanging("D", pending: "100"), try hanging("D", flags: 4)] {
            #expect(killed.message.hasSuffix("; it was killed and has not ended yet"))
            #expect(killed.remedy == "start another broker, as root: it takes over, although that one cannot end")
        }
        // A sleeping broker may be about to answer.
        #expect(try hanging("S").remedy?.contains("systemctl start") == true)
    }

    @Test(
        "judges the kernel by its release",
        arguments: [
            ("6.12.95+deb12-cloud-amd64", Check.Status.ok), ("7.3.4", .ok), ("6.18-rc1", .ok), ("10.0.0", .ok),
            ("6.4.0", .warning), ("6.1.0-53", .missing), ("6.0.0", .missing), ("5.19.17", .missing), ("what", .warning),
            ("6", .warning),
        ])
    func kernel(release: String, status: Check.Status) throws {
        #expect(try check("kernel") { $0.kernelRelease = release }.status == status)
    }

    @Test("names a kernel that is known to be bad, its report and what to boot instead")
    func badKernel() throws {
        let bad = try check("kernel") { $0.kernelRelease = "6.17.0-1015-azure" }
        #expect(bad.status == .missing)
        #expect(bad.line.contains("actions/runner-images/issues/14175"))
        #expect(bad.remedy?.contains("linux-image-generic") == true)
    }

    @Test("tells a module that is not loaded from one that was never built")
    func module() throws {
        let loadable = try check("module") {
            $0.kinds["/sys/module/ublk_drv"] = nil
            $0.texts["/lib/modules/6.12.95/modules.dep"] = "kernel/drivers/block/ublk_drv.ko.xz:\n"
        }
        #expect(loadable.status == .missing && loadable.remedy?.contains("modprobe ublk_drv") == true)
        let absent = try check("module") {
            $0.kinds["/sys/module/ublk_drv"] = nil
            $0.kinds["/lib/modules/6.12.95"] = .directory
        }
        #expect(absent.message.contains("CONFIG_BLK_DEV_UBLK") && absent.remedy?.contains("apt install") == true)
        let replaced = try check("module") { $0.kinds["/sys/module/ublk_drv"] = nil }
        #expect(replaced.remedy?.contains("reboot") == true)
    }

    @Test("wants the control device to be a device")
    func control() throws {
        let reload = try check("control") { $0.kinds["/dev/ublk-control"] = nil }
        #expect(reload.status == .missing && reload.remedy?.contains("modprobe -r ublk_drv") == true)
        let moduleFirst = try check("control") {
            $0.kinds["/dev/ublk-control"] = nil
            $0.kinds["/sys/module/ublk_drv"] = nil
        }
        #expect(moduleFirst.remedy == "reboot if the kernel was just replaced, else install its modules")
        #expect(try check("control") { $0.kinds["/dev/ublk-control"] = .file }.status == .missing)
    }

    @Test("knows a container by its /dev, and gives no advice there that only a host can follow")
    func container() throws {
        let host = "24 1 0:6 / /dev rw - devtmpfs udev rw\n"
        for (mounts, isContainer) in [
            (host, false), (host + "90 24 0:70 / /dev rw - tmpfs tmpfs rw\n", true),
            ("1 0 8:1 / / rw - ext4 /dev/sda1 rw\n", true),
            ("24 1 0:6 / /dev rw shared:2 master:3 - devtmpfs udev rw\n", false),
        ] {
            let control = try check("control") {
                $0.kinds["/dev/ublk-control"] = nil
                $0.texts["/proc/self/mountinfo"] = mounts
            }
            #expect(control.remedy?.contains("-v /dev:/dev") == isContainer)
            let module = try check("module") {
                $0.kinds["/sys/module/ublk_drv"] = nil
                $0.texts["/proc/self/mountinfo"] = mounts
            }
            #expect(module.remedy?.hasSuffix("on the host") == isContainer)
            #expect(module.remedy?.contains("reboot") != isContainer)
        }
    }

    @Test("knows the three ways in which io_uring can be closed")
    func ioUring() throws {
        func with(_ disabled: String?, _ group: String) throws -> Check {
            try check("io_uring") {
                $0.texts["/proc/sys/kernel/io_uring_disabled"] = disabled
                $0.texts["/proc/sys/kernel/io_uring_group"] = group
            }
        }
        #expect(try with(nil, "-1").status == .ok)
        #expect(try with("1\n", "501\n").status == .ok)
        let closed = try with("1\n", "-1\n")
        #expect(closed.status == .missing && closed.remedy?.contains("sysctl kernel.io_uring_group=501") == true)
        #expect(try with("2\n", "501\n").status == .missing)
        #expect(try with("3\n", "501\n").status == .warning)
        let noGroup = try check("io_uring") {
            $0.texts["/proc/sys/kernel/io_uring_disabled"] = "1"
            $0.groupsByName["ubd-worker"] = nil
        }
        #expect(noGroup.remedy?.contains("groupadd") == true)
    }

    @Test("tells 'not a member' from 'a member who must log in again'")
    func group() throws {
        let old = try check("group", permitted: false) { $0.groups = [1000] }
        #expect(old.status == .missing && old.remedy?.contains("log in again") == true)
        let stranger = try check("group", permitted: false) {
            $0.groups = [1000]
            $0.userName = "mallory"
        }
        #expect(stranger.remedy == "run 'usermod -aG ubd mallory' as root, then log in again")
        #expect(
            try check("group", permitted: false) { $0.groupsByName["ubd"] = nil }.remedy?.contains("groupadd") == true)
        let root = try check("group", permitted: false) {
            $0.groups = [0]
            $0.uid = 0
        }
        #expect(root.status == .ok)
    }

    @Test("wants no group of somebody whom another rule of the access policy lets in")
    func noGroup() throws {
        #expect(try check("group") { $0.groups = [1000] }.status == .ok)
        #expect(try check("group") { $0.groupsByName["ubd"] = nil }.status == .ok)
        #expect(try check("group") { _ in }.message == "you are in group ubd")
    }

    @Test("tells what keeps a broker from starting, and how this host starts one")
    func installation() {
        let silent = Result<InfoReply, CommandFailure>.failure(.init(.brokerNotReachable, "x", "x", remedy: "x"))
        var machine = FakeMachine.healthy
        #expect(Installation.checks(machine, broker: .success(FakeBroker.info)).isEmpty)
        #expect(Installation.checks(machine, broker: silent).map(\.status) == [.ok])
        #expect(Installation.startCommand(machine) == "systemctl start ubd-broker.socket")
        machine.kinds["/run/systemd/system"] = nil
        #expect(Installation.startCommand(machine) == "/usr/libexec/ubd/ubd-broker")
        machine.groupsByName["ubd-worker"] = nil
        #expect(
            Installation.checks(machine, broker: silent)[0].remedy?.contains("groupadd --system ubd-worker") == true)
        machine.kinds["/etc/ubd/access.policy"] = nil
        #expect(Installation.checks(machine, broker: silent)[0].message.contains("no /etc/ubd/access.policy"))
        machine.kinds["/usr/libexec/ubd/ubd-worker"] = nil
        #expect(Installation.checks(machine, broker: silent)[0].message.contains("no /usr/libexec/ubd/ubd-worker"))
        machine.kinds["/usr/libexec/ubd/ubd-broker"] = nil
        #expect(Installation.checks(machine, broker: silent)[0].remedy == "run 'make install' as root")
    }

    @Test("believes the broker about access")
    func access() {
        #expect(checks(.healthy, permitted: false).first { $0.name == "access" }?.status == .missing)
    }

    @Test("warns of few files, little memory and foreign names")
    func warnings() throws {
        #expect(try check("files") { $0.openFileLimit = 20 }.status == .warning)
        #expect(try check("memory") { $0.texts["/proc/meminfo"] = "MemAvailable: 100000 kB\n" }.status == .warning)
        #expect(try check("memory") { $0.texts["/proc/meminfo"] = "" }.status == .warning)
        let names = try check("names") {
            $0.directories["/dev"] = ["ubda", "ubdb", "ubdb0", "ubdb1", "ubdb2", "ubdbx"]
            $0.kinds["/dev/ubdb1"] = .blockDevice(major: 98, minor: 16)
            $0.kinds["/dev/ubdb2"] = .link("/dev/sda")
        }
        #expect(names.status == .warning)
        #expect(names.message == "something else has /dev/ubdb, /dev/ubdb1, /dev/ubdb2")
    }

    @Test("wants the udev rule only where udev runs")
    func udev() throws {
        #expect(try check("udev") { $0.kinds["/usr/lib/udev/rules.d/59-ubd.rules"] = nil }.status == .missing)
        let none = try check("udev") {
            $0.kinds["/usr/lib/udev/rules.d/59-ubd.rules"] = nil
            $0.kinds["/run/udev/control"] = nil
        }
        #expect(none.status == .ok)
    }

    @Test("finds users and groups in a table by name or number")
    func tables() {
        let table = "root:x:0:\nubd:x:0997:alice,bob\n\nshort:x\nempty:x:12:\n"
        #expect(LiveMachine.entry(in: table, "ubd") == ["ubd", "x", "0997", "alice,bob"])
        #expect(LiveMachine.entry(in: table, "12") == ["empty", "x", "12", ""])
        #expect(LiveMachine.entry(in: table, "short") == nil && LiveMachine.entry(in: table, "alice") == nil)
        #expect(LiveMachine.entry(in: "", "root") == nil)
        // A name of digits is no number.
        #expect(LiveMachine.entry(in: "12:x:0:\nubd:x:12:\n", "12") == ["ubd", "x", "12", ""])
    }

    @Test("takes the host's own file where getent does not know, and does not wait for a silent one twice")
    func nameService() throws {
        let folder = TemporaryFolder()
        try replaceFile(folder.path + "/passwd", with: Array("root:x:0:0::/:\nbob:x:1001:1001::/:\n".utf8), mode: 0o600)
        try replaceFile(folder.path + "/group", with: Array("ubd:x:997:bob\n".utf8), mode: 0o600)
        let program = folder.path + "/getent"
        func machine(_ script: String?) throws -> LiveMachine {
            if let script { try replaceFile(program, with: Array(("#!/bin/sh\n" + script).utf8), mode: 0o700) }
            return LiveMachine(getent: script == nil ? "/nowhere/getent" : program, nameSeconds: 1, tables: folder.path)
        }
        let own = [UInt32(0): "root", 1001: "bob"]
        for script in [nil, "exit 1\n", "kill -9 $$\n", "exec yes\n", "echo zoe:x:0:0::/:; exit 3\n"] {
            #expect(try machine(script).userNames(of: [0, 1001, 1002]) == own, "\(script ?? "no getent")")
            #expect(try machine(script).group(named: "ubd") == Group(gid: 997, members: ["bob"]))
        }
        // What it knows counts, also when it does not know all: status 2. All are asked for at once.
        let answering = "echo zoe:x:0:0::/:; echo $* >>\(folder.path)/asked; exit 2\n"
        #expect(try machine(answering).userNames(of: [0, 1001]) == [0: "zoe"])
        #expect(try String(contentsOfFile: folder.path + "/asked", encoding: .utf8) == "passwd 0 1001\n")
        #expect(try machine("exit 2\n").group(named: "ubd") == nil)
        let silent = try machine("exec sleep 20\n")
        let start = monotonicNanoseconds()
        for _ in 0..<4 { #expect(silent.group(named: "ubd")?.gid == 997 && silent.userName(of: 0) == "root") }
        #expect(monotonicNanoseconds() - start < 4_000_000_000)
    }

    @Test("can look at the machine that it runs on")
    func live() {
        let machine = LiveMachine()
        #expect(KernelChecks.version(of: machine.kernelRelease) != nil)
        #expect(machine.groups.contains(UInt32(getgid())))
        #expect(machine.group(named: "root") == Group(gid: 0, members: machine.group(named: "root")?.members ?? []))
        #expect(machine.userName(of: 0) == "root")
        #expect(machine.userName(of: .max - 7) == nil && machine.group(named: "no-such-group-of-ubd") == nil)
        #expect(machine.kind(of: "/dev/null", followsLinks: true) == .characterDevice)
        #expect(
            machine.kind(of: "/proc/self/cwd", followsLinks: false).map { if case .link = $0 { true } else { false } }
                == true)
        #expect(machine.kind(of: "/nowhere", followsLinks: true) == nil)
        #expect(machine.entries(of: "/proc/self/task").count >= 1)
        #expect(machine.openFileLimit > 0)
        #expect(KernelChecks.all(machine).count == 4)
    }
}
