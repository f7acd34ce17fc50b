import json
from pathlib import Path
import pytest
W=Path(__file__).parent/"workflows"
@pytest.mark.parametrize("name",["text_to_everything","picture_and_sound_to_clip","mix_two_prompts"])
def test_w(session,name):
    import time; t=time.time()
    g=json.loads((W/f"{name}.json").read_text()); g["5"]["inputs"]["steps"]=2; g["1"]["inputs"]["name"]="tiny"; out=session.run(g)
    print(time.time()-t, json.dumps(out)[:1500])
