import Glibc
import SystemCalls
import Testing

@testable import ubd_broker

@Suite("What can not be looked at")
struct UnknownTests {
    @Test("processes that can not be looked at are not taken for none")
    func unreadableProcesses() throws {
        let host = try Host()
        let uids = try #require(WorkerUIDs(base: 0x7200_0000, count: 16))
        let proc = host.folder + "/proc"
        #expect(throws: SystemError.self) { try uids.processes(except: [], proc: proc) }
        // 7 has ended since it was listed, 8 has a uid of the range.
        for name in ["", "/7", "/8", "/9"] { #expect(mkdir(proc + name, 0o700) == 0) }
        try replaceFile(proc + "/8/status", with: Array("Uid:\t1\t\(0x7200_0003)\t1\t1\n".utf8), mode: 0o600)
        #expect(try uids.processes(except: [], proc: proc).map(\.pid) == [8])
        #expect(try uids.processes(except: [0x7200_0003], proc: proc).isEmpty)
        #expect(mkdir(proc + "/9/status", 0o700) == 0)
        #expect(throws: SystemError.self) { try uids.processes(except: [], proc: proc) }
    }

    @Test("a thread that can not be looked at is not taken for one that has ended")
    func unreadableThread() throws {
        let host = try Host()
        let proc = host.folder + "/proc"
        for name in ["", "/7", "/7/task", "/7/task/7", "/7/task/8"] { #expect(mkdir(proc + name, 0o700) == 0) }
        let check = SandboxVerification(uid: 1, gid: 1, seccompFilters: 2, mountCount: MountCount())
        #expect(check.problem(inProcess: 7, proc: proc) == "0 threads instead of 1")
        #expect(mkdir(proc + "/7/task/8/status", 0o700) == 0)
        #expect(check.problem(inProcess: 7, proc: proc)?.hasPrefix("task 8 can't be looked at") == true)
    }

    @Test("the uid of a process that can not be opened is not given away", arguments: [EMFILE, ENOMEM, ESRCH])
    func orphan(_ errno: Int32) throws {
        let orphans = Orphans(loop: try EventLoop()) { (_) throws(SystemError) in throw SystemError("open", errno) }
        var hasEnded = false
        orphans.watch(7) { hasEnded = true }
        #expect(hasEnded == (errno == ESRCH))
        #expect(throws: SystemError("pidfd_open \(Int32.max)", ESRCH)) { _ = try ProcessHandle(pid: .max).pid }
        #expect(throws: SystemError.self) { try WorkerProcess.startTime(of: .max) }
    }

    @Test("a link's name is free only when nothing has it")
    func unknownLink() throws {
        let host = try Host()
        #expect(Nodes(folder: host.folder).mayLink(3))
        try replaceFile(host.folder + "/file", with: [], mode: 0o600)
        // ENOTDIR says nothing about the name.
        #expect(!Nodes(folder: host.folder + "/file").mayLink(3))
    }

    @Test("a name that can not be looked up is not taken for one that nobody has")
    func unknownName() throws {
        #expect(try AccountNames.user("root") == 0)
        #expect(try AccountNames.group("root") == 0)
        #expect(try AccountNames.user("no such user") == nil)
        #expect(try AccountNames.group("no such group") == nil)
        let accounts = Accounts(parsing: Array("carol:100000:65536\n".utf8)) { (name) throws(SystemError) in
            throw SystemError("getpwnam \(name)", EMFILE)
        }
        let problem = try #require(accounts.problem)
        #expect(problem.contains("can not be looked up: getpwnam carol: Too many open files"))
        #expect(!problem.contains("there is no user"))
    }
}
