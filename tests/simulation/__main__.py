import sys, time, gc
from world import World, Plan
from observe import Silent
gc.freeze()
gc.disable()
t=time.process_time(); ev=0
for seed in range(int(sys.argv[1]), int(sys.argv[2])):
    r = World(Plan(seed, trace=len(sys.argv)>3), Silent()).run()
    ev+=r.events
    if len(sys.argv)>3: print("\n".join(r.lines))
    if r.failure or len(sys.argv)>3:
        print(seed, r.events, r.hash, dict(r.counts), repr(r.failure)[:600])
        import traceback
        if r.failure: traceback.print_exception(r.failure)
d=time.process_time()-t
print(f"{ev} events, {d:.1f}s, {ev/d:.0f}/s")
